"""The look of the pages: one stylesheet, light and dark, screen, phone and paper.

Series colours are those of Okabe and Ito (2008), told apart with any colour vision; in the dark their
lighter members take over. Nothing is said by colour alone.
"""

from __future__ import annotations

__all__ = ["CSS"]

_COLOURS = """
:root{color-scheme:light dark;
--bg:#f5f6f8;--card:#fff;--ink:#161a20;--soft:#565f6c;--line:#dfe3e9;--tint:#eef1f5;--accent:#0b5cad;
--s0:#59626f;--s1:#0072b2;--s2:#d55e00;--s3:#009e73;--s4:#a8558a;--good:#00694c;--bad:#a84300;
--f0:#0072b2;--f1:#56b4e9;--f2:#009e73;--f3:#cc79a7;--k0:#e69f00;--k1:#d55e00;--k2:#8c5a00}
@media (prefers-color-scheme:dark){:root{
--bg:#0d1014;--card:#151a21;--ink:#e8ebf0;--soft:#a0abb9;--line:#2b323c;--tint:#1f2630;--accent:#7cc0f2;
--s0:#9ba6b4;--s1:#56b4e9;--s2:#e69f00;--s3:#2fc79b;--s4:#dd9cc0;--good:#4fd3aa;--bad:#f09a5b;
--f0:#3b93cf;--f1:#8fd0f5;--f2:#1fae86;--f3:#cc79a7;--k0:#e69f00;--k1:#d9691a;--k2:#b98b3e}}
"""

_TEXT = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);overflow-wrap:anywhere;
font:1rem/1.55 Inter,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans",Arial,sans-serif}
main{max-width:68rem;margin:0 auto;padding:3rem 1.5rem 4rem}
header p{margin:.5rem 0 0;color:var(--soft)}
header .brand{font-size:.78rem;font-weight:650;letter-spacing:.09em;text-transform:uppercase;margin:0}
.brand span{color:var(--accent)}
h1{font-size:clamp(1.7rem,1.2rem + 2.2vw,2.6rem);line-height:1.15;letter-spacing:-.022em;margin:.5rem 0 0;
font-weight:720;text-wrap:balance}
h2{font-size:1.4rem;letter-spacing:-.012em;line-height:1.3;margin:0 0 .4rem}
h3{font-size:1rem;margin:1.75rem 0 .6rem}
section{margin-top:3.5rem}
.lead{color:var(--soft);margin:0 0 1.2rem;max-width:48rem;text-wrap:pretty}
code,pre,.mono{font-family:ui-monospace,"SF Mono",SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:.88em}
small{font-size:.82em;color:var(--soft);font-weight:400}
pre{margin:0 0 1rem;padding:1rem 1.2rem;background:var(--tint);border-radius:.6rem;white-space:pre-wrap;
line-height:1.5}
.card{background:var(--card);border:1px solid var(--line);border-radius:.8rem;padding:1.3rem 1.45rem}
.reasons{padding-left:1.1rem;margin:0}
.notes{padding-left:1.1rem;color:var(--soft);font-size:.9rem;margin:1rem 0 0}.notes li{margin:.3rem 0}
.answer{margin:0 0 .4rem}
.tag{white-space:nowrap;font-weight:620}
.tag.faster,.tag.equal{color:var(--good)}.tag.slower,.tag.different{color:var(--bad)}
.tag.none,.tag.baseline,.tag.inconclusive{color:var(--soft);font-weight:500}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.45rem 1.6rem;margin:0;font-size:.94rem}
dt{color:var(--soft);max-width:20rem}dd{margin:0;font-variant-numeric:tabular-nums}
footer{margin-top:3.5rem;padding-top:1.25rem;border-top:1px solid var(--line);color:var(--soft);
font-size:.88rem}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:.3rem}
"""

_VERDICTS = """
.verdicts{margin-top:2.2rem;display:grid;gap:1rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr))}
.verdict{border-top:4px solid var(--s0)}
.verdict.faster{border-top-color:var(--good)}.verdict.slower{border-top-color:var(--bad)}
.verdict p{margin:.8rem 0 0}
.verdict .mono{color:var(--soft);margin:0}
.verdict .big{font-size:2.15rem;line-height:1.12;letter-spacing:-.025em;font-weight:720;margin:.45rem 0 0}
.faster .big{color:var(--good)}.slower .big{color:var(--bad)}.off .big{color:var(--soft)}
.verdict .big small{display:block;font-size:.86rem;font-weight:450;letter-spacing:0;line-height:1.5;
margin-top:.3rem}
.verdict .note{color:var(--soft);font-size:.88rem;border-left:3px solid var(--line);padding-left:.8rem}
.gates{list-style:none;margin:0}.gates li+li{margin-top:.8rem;padding-top:.8rem;border-top:1px solid var(--line)}
.gates strong{margin-right:.5em}.gates .passed strong{color:var(--good)}.gates .failed strong,
.gates .not-judged strong{color:var(--bad)}
"""

_TABLES = """
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.93rem;font-variant-numeric:tabular-nums}
th,td{padding:.55rem .85rem;text-align:left;vertical-align:middle;border-bottom:1px solid var(--line)}
thead th{font-size:.8rem;font-weight:600;color:var(--soft);vertical-align:bottom}thead th.num{white-space:normal}
tbody th{font-weight:550}
.num{text-align:right;white-space:nowrap}
tr.off td,tr.off th{color:var(--soft)}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.8rem}
.plain td,.plain th{vertical-align:baseline}.plain tbody tr:last-child>*{border-bottom:0}
.plain .name{min-width:9rem;max-width:26rem}.plain .why{min-width:16rem}.plain thead th{white-space:nowrap}
.plain th small{display:block}
.empty{border-bottom-color:transparent}
.results td.plot{padding:0;position:relative;width:32%;min-width:12rem;height:2.4rem}
.results .name{min-width:11.5rem}
.results .way{color:var(--soft);font-weight:500}
.way span{float:left}.way span+span{float:right}
.group th{padding-top:1.5rem;border-bottom:2px solid var(--line);font-size:.98rem}
.group .mono{font-weight:650}
.total>*{font-weight:650}.total .counts{color:var(--soft);font-size:.86rem;font-weight:500}
.total td,.total th{background:color-mix(in srgb,var(--tint) 60%,transparent)}
.results tbody+tbody .group th{border-top:0}
.scale td{border:0}.results .scale td.plot{height:1.9rem;vertical-align:top}
"""

_DRAWINGS = """
svg{display:block;width:100%;overflow:visible;color:var(--ink)}
svg svg{color:inherit}
svg text{font-size:12.5px;fill:var(--soft);font-variant-numeric:tabular-nums}
svg.fill{position:absolute;inset:0;height:100%}
svg .grid{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
svg .one{stroke:var(--ink);stroke-width:1.4;stroke-dasharray:4 3}
svg .band{fill:var(--s0);opacity:.17}
.good{color:var(--good)}.bad{color:var(--bad)}.same{color:var(--s0)}
.bar{stroke:currentColor;stroke-width:2.4;stroke-linecap:round}
.mark{fill:currentColor;stroke:currentColor;stroke-width:1.8}.same .mark{fill:var(--card)}
path.fill{fill:currentColor}.total .bar{stroke-width:3.4}
svg.s0{color:var(--s0)}svg.s1{color:var(--s1)}svg.s2{color:var(--s2)}svg.s3{color:var(--s3)}svg.s4{color:var(--s4)}
.strip{fill:none;stroke:currentColor;stroke-width:1.6}.strip path{vector-effect:non-scaling-stroke}
.strip .box{fill:currentColor;fill-opacity:.25}.strip .heavy{stroke-width:3.4}.strip .fill{stroke:none}
.strip .ticks{stroke-width:1.2;stroke-opacity:.65}
.f0{fill:var(--f0);background:var(--f0)}.f1{fill:var(--f1);background:var(--f1)}
.f2{fill:var(--f2);background:var(--f2)}.f3{fill:var(--f3);background:var(--f3)}
.k0{fill:var(--k0);background:var(--k0)}.k1{fill:var(--k1);background:var(--k1)}
.k2{fill:var(--k2);background:var(--k2)}
.shares rect{stroke:var(--card);stroke-width:1.5}
.trend td.plot{width:19%;min-width:8rem;height:4rem;padding:0 .4rem}.trend .result{min-width:9rem}
.trend small{white-space:normal}svg.spark{color:var(--s1)}.time .spark{color:var(--s3)}
.area{fill:currentColor;opacity:.16}.line{fill:none;stroke:currentColor;stroke-width:2;
vector-effect:non-scaling-stroke}.dot{fill:currentColor}
figure{margin:0}figcaption{font-weight:650;margin-bottom:.8rem}
.charts{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}
.strip-row p{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1rem;margin:0 0 .15rem;
font-size:.9rem}.strip-row p span{color:var(--soft);font-variant-numeric:tabular-nums}
.strip-row+.strip-row{padding-top:.7rem}.axis{margin-top:.2rem}
.bar-row{display:grid;grid-template-columns:minmax(9rem,13rem) 1fr 5.5rem;gap:.3rem 1rem;align-items:center;
font-size:.93rem;padding:.22rem 0}.bar-row .num{font-variant-numeric:tabular-nums;color:var(--soft)}
.bar-row>svg:first-child{grid-column:1/3}
.legend{display:flex;flex-wrap:wrap;gap:.4rem 1.6rem;list-style:none;padding:0;margin:1rem 0 0;font-size:.92rem}
.legend i{display:inline-block;width:.85em;height:.85em;border-radius:.2em;margin-right:.5em;
vertical-align:-.06em}
.chip{font-weight:400;background:var(--tint);border-radius:.35rem;padding:.12em .45em;display:inline-block}
.chip.norm{background:none;box-shadow:inset 0 0 0 1px var(--s1);color:var(--s1)}
details{margin-top:1rem}
summary{cursor:pointer;font-weight:550;padding:.4rem 0}
details.model{margin-top:.6rem;background:var(--card);border:1px solid var(--line);border-radius:.8rem;
padding:.35rem 1.2rem}.model[open]{padding-bottom:1.2rem}
.model>summary small{margin-left:.8em}.model .card{background:var(--bg)}
.model .scroll{max-height:34rem;overflow:auto;background:var(--bg)}
.raw pre{max-height:24rem;overflow:auto;font-size:.78rem}
"""

_PHONE = """
@media screen and (max-width:56rem){
main{padding:2rem 1rem 3rem}section{margin-top:2.75rem}.card{padding:1.1rem}
th,td{padding:.5rem .75rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.6rem}
svg .thin{display:none}
.results,.results tbody{display:block}
.results thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.results tr{display:grid;grid-template-columns:minmax(8.5rem,1fr) minmax(0,auto);
border-bottom:1px solid var(--line);padding:.6rem 0}
.results tbody tr:last-child{border-bottom:0}
.results th,.results td{border:0;padding:.1rem .9rem}.results .name{min-width:0}
.results .name{grid-area:1/1}.results .result{grid-area:1/2;text-align:right}
.results td.plot{grid-area:3/1/auto/3;width:auto;min-width:0;height:2rem;margin:.25rem .5rem}
.results td.num{text-align:left;white-space:normal;grid-row:2}.results td.ratio{grid-area:4/1/auto/3}
.results td[data-l]:not([data-l=""])::before{content:attr(data-l) ": ";color:var(--soft)}
.results .num+.num{text-align:right}.results .ratio.num{text-align:left}
.results .why,.results .counts{grid-column:1/3}
.results .group{display:block;padding:1rem 0 .4rem;border-bottom:2px solid var(--line)}
.results .total td,.results .total th{background:none}.results .total{background:var(--tint)}
.results .scale td:not(.plot){display:none}.results .scale td.plot{height:1.5rem;grid-row:1;margin:0 .5rem}
.plain,.plain tbody{display:block}.plain thead{position:absolute;width:1px;height:1px;overflow:hidden;
clip-path:inset(50%)}
.plain tr{display:grid;grid-template-columns:1fr 1fr;gap:.1rem 1.2rem;padding:.6rem .9rem;
border-bottom:1px solid var(--line)}.plain tbody tr:last-child{border-bottom:0}
.plain th,.plain td{border:0;padding:.05rem 0;grid-column:1/3;min-width:0}
.plain td{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 .8rem}.plain td.num{grid-column:auto}
.plain td[data-l]:not([data-l=""])::before{content:attr(data-l);color:var(--soft);flex:none}
.plain td.empty{display:none}
.trend td.plot,.trend .plot.time{grid-area:auto/1/auto/3}.results.trend td.plot{height:4.1rem}
.trend td.plot:empty{display:none}
.trend td.num{grid-row:auto;grid-column:1/3}.trend .num+.num{text-align:left}
.bar-row{grid-template-columns:1fr auto}.bar-row svg{grid-area:2/1/auto/3}
.bar-row>svg:first-child{grid-area:1/1}.bar-row>svg:first-child+.num{grid-area:1/2}
.model>summary small{display:block;margin:0}.model{padding:.35rem .9rem}}
"""

_PRINT = """
@media print{:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--tint:#f2f2f2;
--accent:#0b5cad;--s0:#555;--s1:#0072b2;--s2:#d55e00;--s3:#009e73;--s4:#a8558a;--good:#00694c;--bad:#a84300;
--f0:#0072b2;--f1:#56b4e9;--f2:#009e73;--f3:#cc79a7;--k0:#e69f00;--k1:#d55e00;--k2:#8c5a00}
@page{margin:14mm}
html{font-size:9.5pt}main{max-width:none;padding:0}table{font-size:8pt}th,td{padding:.25rem .4rem}
h1{font-size:20pt}.verdict .big{font-size:17pt}section{margin-top:1.6rem}
.plain .name,.plain .why,.results td.plot{min-width:0}.results .name{min-width:27mm}
.plain thead th,.plain .num{white-space:normal}
.card,tr,figure,.bar-row{break-inside:avoid}h2,h3,summary,.group{break-after:avoid}
.scroll,.model .scroll{overflow:visible;max-height:none}.results td.plot{height:2rem;width:28%}
details:not([open]):not(.model){display:none}summary{list-style:none}.raw{display:none}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""

CSS = "".join(
    line
    for part in (_COLOURS, _TEXT, _VERDICTS, _TABLES, _DRAWINGS, _PHONE, _PRINT)
    for line in part.splitlines()
)
