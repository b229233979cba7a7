"""What this project does on a GPU, in one command: ``python -m benchmarks.gpu --out DIR``; see docs/gpu.md."""
