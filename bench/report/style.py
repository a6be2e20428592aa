"""The look of the HTML page: one stylesheet, light and dark, screen, phone and paper.

Series colours are those of Okabe and Ito (2008), told apart with any colour vision; in the dark their
lighter members take over. Nothing is said by colour alone.
"""

from __future__ import annotations

__all__ = ["CSS"]

CSS = """
:root{color-scheme:light dark;
--bg:#f6f7f9;--card:#fff;--ink:#171b21;--soft:#59626f;--line:#dde1e7;--tint:#eef1f5;
--s0:#59626f;--s1:#0072b2;--s2:#d55e00;--s3:#009e73;--s4:#a8558a;--good:#00694c;--bad:#a84300;
--f0:#0072b2;--f1:#56b4e9;--f2:#009e73;--f3:#cc79a7;--k0:#e69f00;--k1:#d55e00}
@media (prefers-color-scheme:dark){:root{
--bg:#0e1116;--card:#161b22;--ink:#e8ebf0;--soft:#9ba6b4;--line:#2b323c;--tint:#1e252e;
--s0:#9ba6b4;--s1:#56b4e9;--s2:#e69f00;--s3:#2fc79b;--s4:#dd9cc0;--good:#4fd3aa;--bad:#f09a5b;
--f0:#3b93cf;--f1:#8fd0f5;--f2:#1fae86;--f3:#cc79a7;--k0:#e69f00;--k1:#d9691a}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);overflow-wrap:anywhere;
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:64rem;margin:0 auto;padding:3rem 1.5rem 4rem}
header p{margin:.35rem 0 0;color:var(--soft)}
.brand{font-size:.8rem;font-weight:650;letter-spacing:.08em;text-transform:uppercase;color:var(--soft);
margin:0}
h1{font-size:clamp(1.6rem,1.2rem + 2vw,2.4rem);line-height:1.18;letter-spacing:-.02em;margin:.4rem 0 0;
font-weight:700;text-wrap:balance}
h2{font-size:1.3rem;letter-spacing:-.01em;line-height:1.3;margin:0 0 .35rem}
h3{font-size:1rem;margin:1.75rem 0 .5rem}
section{margin-top:3.25rem}
.lead{color:var(--soft);margin:0 0 1.1rem;max-width:46rem}
code,pre,.mono{font-family:ui-monospace,"SF Mono",SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;
font-size:.9em}
.verdicts{margin-top:2rem;display:grid;gap:1rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,18rem),1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:1.25rem 1.4rem}
.verdict{display:flex;flex-direction:column;border-top:4px solid var(--s0)}
.verdict.faster{border-top-color:var(--good)}.verdict.slower{border-top-color:var(--bad)}
.verdict .mono{color:var(--soft);margin:0}
.verdict .big{font-size:1.9rem;line-height:1.15;letter-spacing:-.02em;font-weight:700;margin:.5rem 0 0}
.faster .big{color:var(--good)}.slower .big{color:var(--bad)}
.verdict .big small{display:block;font-size:.85rem;font-weight:450;letter-spacing:0;color:var(--soft);
line-height:1.5;margin-top:.2rem}
.verdict p:last-child{margin:.7rem 0 0}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.75rem}
table{border-collapse:collapse;width:100%;font-size:.93rem;font-variant-numeric:tabular-nums}
th,td{padding:.6rem .85rem;text-align:left;vertical-align:baseline;border-bottom:1px solid var(--line)}
tbody tr:last-child>*{border-bottom:0}
tbody tr.first>*{border-top:2px solid var(--line)}tbody tr.first:first-child>*{border-top:0}
thead th{font-size:.8rem;font-weight:600;color:var(--soft);white-space:nowrap;vertical-align:bottom}
tbody th{font-weight:500}
.num{text-align:right;white-space:nowrap}
.name{min-width:8.5rem;max-width:24rem}.runtime{min-width:12rem}.why{min-width:16rem}
tr.off td,tr.off th{color:var(--soft)}
.tag{white-space:nowrap;font-weight:600}
.tag.faster,.tag.equal{color:var(--good)}.tag.slower,.tag.different{color:var(--bad)}
.tag.none,.tag.baseline,.tag.inconclusive{color:var(--soft);font-weight:500}
figure{margin:1rem 0 0}
figcaption{font-size:.88rem;color:var(--soft);margin-top:.75rem;max-width:46rem}
svg{display:block;width:100%;height:auto;color:var(--ink);font-family:inherit;overflow:visible}
svg text{fill:currentColor;paint-order:stroke;stroke:var(--card);stroke-width:5px;stroke-linejoin:round}
svg .soft{fill:var(--soft)}
svg .grid{stroke:var(--line)}svg .one{stroke:var(--ink)}svg .band{fill:var(--s0);opacity:.2}
svg .gap{stroke:var(--card)}
.narrow{display:none}
@media (max-width:40rem){.wide{display:none}.narrow{display:block}
main{padding:2rem 1rem 3rem}.runtime{min-width:8rem}
section{margin-top:2.5rem}.card{padding:1.1rem}th,td{padding:.55rem .75rem}}
.legend{display:flex;flex-wrap:wrap;gap:.4rem 1.4rem;list-style:none;padding:0;margin:.9rem 0 0;
font-size:.92rem}
.legend i{display:inline-block;width:.8em;height:.8em;border-radius:.2em;margin-right:.5em;
vertical-align:-.05em}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.45rem 1.5rem;margin:0;
font-size:.94rem}
dt{color:var(--soft);max-width:20rem}dd{margin:0;font-variant-numeric:tabular-nums}
@media (max-width:40rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.6rem}}
pre{margin:0;padding:1rem 1.2rem;background:var(--tint);border-radius:.6rem;white-space:pre-wrap;
line-height:1.5}
details{margin-top:1rem}
summary{cursor:pointer;font-weight:550;padding:.35rem 0}
details pre{max-height:24rem;overflow:auto;font-size:.78rem}
details .scroll{margin-top:.5rem;max-height:32rem;overflow:auto}
.notes{padding-left:1.1rem;color:var(--soft);font-size:.92rem;margin:1rem 0 0}.notes li{margin:.3rem 0}
footer{margin-top:3.5rem;padding-top:1.25rem;border-top:1px solid var(--line);color:var(--soft);
font-size:.88rem}
@media print{:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;
--tint:#f2f2f2;
--s0:#555;--s1:#0072b2;--s2:#d55e00;--s3:#009e73;--s4:#a8558a;--good:#00694c;--bad:#a84300}
body{font-size:10pt}main{max-width:none;padding:0}table{font-size:8pt}th,td{padding:.3rem .45rem}
.name,.runtime,.why{min-width:0}section{margin-top:1.6rem}
.card,.scroll,figure,tr{break-inside:avoid}h2,h3{break-after:avoid}.scroll{overflow:visible}
.wide{display:block}.narrow,.raw{display:none}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
