"""The terminal chat: what is typed (keys), what is meant by it (commands), what is shown (view).

`room` holds them together. Nothing here generates: it is one more reader of the API's events.
"""
