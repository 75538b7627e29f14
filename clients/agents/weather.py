"""A tool server of the Model Context Protocol on standard input and output, with one tool: what agents are given to call.

Usage: weather.py FILE [NAME]. FILE gets a line a call; NAME is the tool's.
"""

import json
import sys

TOOL = {
    "name": sys.argv[2] if len(sys.argv) > 2 else "get_weather",
    "description": "Get the current weather in a city.",
    "inputSchema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def answer(method, params):
    if method == "initialize":
        version = params.get("protocolVersion", "2025-06-18")
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "weather", "version": "1"}}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        city = params["arguments"]["city"]
        with open(sys.argv[1], "a") as calls:
            calls.write(city + "\n")
        return {"content": [{"type": "text", "text": f"18 degrees in {city}"}]}
    return {}


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        result = answer(request["method"], request.get("params") or {})
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
