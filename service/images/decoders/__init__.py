"""Decoding of pictures in processes that can be killed, or in threads.

    front-end ── pool ──▶ keeper (forked first, forks the others) ──▶ decoder × N, and some more for large pictures
                  │                                                       ▲
                  └── the body, through memory that the two share ────────┘ ◀── pixels, the same way

Pillow's C code cannot be interrupted in a thread. A process can be: a decoder that exceeds its time is killed and
replaced, and no other request notices. A decoder shares one block of memory with its front-end and nothing else. The
front-end copies the pixels into the slot (150 KB, some ten microseconds). Only the front-end ever writes a slot, so a
slot is free the moment it is given up.
"""
