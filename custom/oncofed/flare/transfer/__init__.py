"""Send large models and updates directly, outside FLARE's messages.

FLARE's messages pass through three processes in chunks, each copied several times in Python. Where a site can reach the
server itself, large tensors take another way: one more TLS connection to the same port, which the server's main process
hands to the job's process unread (``shared_port``). There they are the body of an HTTP request (``client``,
``server``), as they are in memory, in the safetensors format (``codec``). FLARE's message still passes all filters, and
names the tensors that belong to it (``decomposer``). Where no direct connection is possible, as behind a relay, FLARE
transfers the tensors too.
"""
