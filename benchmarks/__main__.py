"""`make bench`: hop overhead, planner speed and operator memory in one run, as a table and build/bench/bench.json."""

from benchmarks import hop, operator_memory, planner
from benchmarks._report import write

if __name__ == "__main__":
    write("bench", [*planner.main(), *hop.main(), *operator_memory.main()])
