"""Checks a running server with what builds on the official clients: openai-agents with its default model class, LangChain,
LiteLLM and pydantic-ai. Each that is there completes a turn with a tool call.

Usage: frameworks.py URL (without /v1).
"""

import asyncio
import os
import sys

URL = sys.argv[1]
BASE = URL + "/v1"
QUESTION = "What is the weather in Paris?"
called = []

os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", OPENAI_AGENTS_DISABLE_TRACING="1", OPENAI_API_KEY="any",
                  OPENAI_BASE_URL=BASE, ANTHROPIC_API_KEY="any")


def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    called.append(city)
    return f"18 degrees in {city}"


def agents():
    from agents import Agent, ModelSettings, Runner, function_tool, set_default_openai_client
    from openai import AsyncOpenAI

    def client():  # An event loop each.
        set_default_openai_client(AsyncOpenAI(base_url=BASE, api_key="any", max_retries=0), use_for_tracing=False)

    client()
    agent = Agent(name="a", instructions="You help.", model="demo", tools=[function_tool(get_weather)],
                  model_settings=ModelSettings(temperature=0, max_tokens=100))
    result = Runner.run_sync(agent, QUESTION)
    streamed = []

    async def stream():
        client()
        run = Runner.run_streamed(agent, QUESTION)
        async for event in run.stream_events():
            streamed.append(event.type)
        return run.final_output

    assert asyncio.run(stream()) == result.final_output
    assert "run_item_stream_event" in streamed
    return result.final_output


def langchain():
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="demo", base_url=BASE, api_key="any", use_responses_api=True, temperature=0, max_tokens=100)
    bound = model.bind_tools([get_weather])
    history = [HumanMessage(QUESTION)]
    first = bound.invoke(history)
    call = first.tool_calls[0]
    history += [first, ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"])]
    whole = bound.invoke(history)
    chunks = [chunk.text for chunk in bound.stream(history)]
    assert "".join(chunks) == whole.text, (chunks, whole.text)
    return whole.text


def litellm():
    import litellm

    tool = {"name": "get_weather", "description": "Get the current weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
    ask = dict(model="openai/demo", api_base=BASE, api_key="any", temperature=0, input=QUESTION, tools=[{"type": "function", **tool}])
    first = litellm.responses(**ask)
    call = next(item for item in first.output if item.type == "function_call")
    import json

    result = {"type": "function_call_output", "call_id": call.call_id, "output": get_weather(**json.loads(call.arguments))}
    answer = litellm.responses(**{**ask, "input": [result]}, previous_response_id=first.id)
    text = "".join(part.text for item in answer.output if item.type == "message" for part in item.content)
    # Its route for Anthropic's API.
    message = litellm.completion(model="anthropic/demo", api_base=URL, api_key="any", temperature=0, max_tokens=100,
                                 messages=[{"role": "user", "content": QUESTION}], tools=[{"type": "function", "function": tool}])
    get_weather(**json.loads(message.choices[0].message.tool_calls[0].function.arguments))
    return text


def pydantic():
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    openai = OpenAIProvider(base_url=BASE, api_key="any")
    models = [OpenAIResponsesModel("demo", provider=openai), OpenAIChatModel("demo", provider=openai),
              AnthropicModel("demo", provider=AnthropicProvider(base_url=URL, api_key="any"))]
    answers = []
    for model in models:
        agent = Agent(model, instructions="You help.", tools=[get_weather], model_settings={"temperature": 0, "max_tokens": 100})
        answers.append(agent.run_sync(QUESTION).output)
    assert len(set(answers)) == 1, answers
    return answers[0]


failed = False
for name, check, calls in [("openai-agents", agents, 2), ("langchain", langchain, 1), ("litellm", litellm, 2), ("pydantic-ai", pydantic, 3)]:
    called.clear()
    try:
        answer = check()
    except ModuleNotFoundError as e:
        print(f"{name}: SKIPPED, {e.name} is not installed")
        continue
    good = answer and called == ["Paris"] * calls
    failed |= not good
    print("ok  " if good else "FAILED", f"{name}: {called} {answer!r}")
sys.exit(failed)
