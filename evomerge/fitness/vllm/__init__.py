"""The `vllm` engine: candidates are merged inside the workers of one warm vLLM engine and swapped in place.

Importing this package imports neither torch nor vLLM.
"""
