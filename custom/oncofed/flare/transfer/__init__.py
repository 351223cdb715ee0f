"""Large models and updates travel over connections of their own, straight from disk or memory to where they are needed.

FLARE's messages pass through three processes in pieces, each piece copied several times in Python. What is large goes
another way here, where a site reaches the server itself: over one more TLS connection to the same port, which the
server's main process gives to the job's own process before a byte of it is read (``port``). There it is a request of
HTTP (``counter`` answers, ``courier`` asks), and its body the tensors as they lie in memory, in the format safetensors
(``body``). FLARE's message itself travels as ever, through all filters, and names what belongs to it (``tensors``).
Where there is no such way, as behind a relay, FLARE moves the tensors too.
"""
