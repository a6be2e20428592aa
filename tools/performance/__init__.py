"""What convbn costs and gains in CPU time, memory and latency, measured on real networks."""
