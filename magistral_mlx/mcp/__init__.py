"""Tools of MCP servers: the file that names them, their connections, their calls.

An extra, `mcp`; nothing of it is imported unless a file of servers is given.
"""
