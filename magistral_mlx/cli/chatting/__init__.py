"""The terminal chat: the line editor (keys), its commands, an answer on the screen (view).

`session` holds them together. Nothing here generates: it is one more reader of the API's events.
"""
