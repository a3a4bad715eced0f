"""Where pictures are decoded: in processes that can be killed, or in threads where there are none.

    front-end ── pool ──▶ keeper (forked first, forks the others) ──▶ decoder × N, and some more for large pictures
                  │                                                       ▲
                  └── the body, through memory that the two share ────────┘ ◀── pixels, the same way

Pillow's C code cannot be interrupted in a thread. A process can: who exceeds its time is killed and replaced, and
nobody else notices. A decoder has memory of its own for what goes in and out, and no other; the front-end copies the
pixels into the slot (150 KB, some ten microseconds), so a slot is never another's to write and is free the moment it
is given up.
"""
