"""`make bench-data-plane`: hop, batching, a gateway's rate and overload, in build/bench/bench-data-plane.json."""

from benchmarks._report import write
from benchmarks.batching import main as batching
from benchmarks.gateway_rate import main as gateway_rate
from benchmarks.hop import main as hop
from benchmarks.overload import main as overload

if __name__ == "__main__":
    write("bench-data-plane", [*hop(), *batching(), *gateway_rate(), *overload()])
