"""The tensor functions of the merge methods, and the parts they share.

Every kernel is pure: it reads float32 tensors, never writes to them, and returns a new float32 tensor. Work
is done span by span, so that beside the result only small buffers are needed, and so that a chunk stays in
the cache.
"""
