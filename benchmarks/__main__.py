"""`make bench`: planner speed, hop overhead and operator memory in one run, as a table and build/bench/bench.json."""

from benchmarks._report import write
from benchmarks.hop import main as hop
from benchmarks.operator_memory import main as operator_memory
from benchmarks.planner import main as planner

if __name__ == "__main__":
    write("bench", [*planner(), *hop(), *operator_memory()])
