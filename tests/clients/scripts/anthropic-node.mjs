// The official Anthropic SDK for Node as its own pages show it: the base URL and the key changed.
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { z } from "zod";

const WHERE = {
  baseURL: process.env.JUBAL_URL.replace(/\/v1$/, ""),
  apiKey: process.env.JUBAL_KEY,
  maxRetries: 0,
  timeout: 60_000,
};
const client = new Anthropic(WHERE);
const ASKED = {
  model: "grok-4",
  max_tokens: 200,
  temperature: 0,
  system: "You are a helpful assistant.",
  messages: [{ role: "user", content: "What is the capital of France?" }],
};
const Person = z.object({ name: z.string(), age: z.number().int() });
const texts = (message) => message.content.filter((block) => block.type === "text").map((block) => block.text).join("");

const failure = async (work) => {
  try {
    await work();
  } catch (error) {
    return { class: error.constructor.name, status: error.status, type: error.error?.error?.type, id: error.requestID };
  }
  return null;
};

const parts = {
  async message() {
    const { data, response } = await client.messages.create(ASKED).withResponse();
    const same = data._request_id === response.headers.get("x-request-id");
    return { text: texts(data), stop: data.stop_reason, usage: data.usage, id: data.id, same };
  },

  async stream() {
    const stream = client.messages.stream(ASKED);
    let pieces = 0;
    stream.on("text", () => (pieces += 1));
    const whole = await stream.finalMessage();
    return { text: texts(whole), pieces, stop: whole.stop_reason, usage: whole.usage, id: stream.request_id };
  },

  async count() {
    const { max_tokens, temperature, ...asked } = ASKED;
    return (await client.messages.countTokens(asked)).input_tokens;
  },

  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    return { names, one: (await client.models.retrieve("grok-4")).id };
  },

  async errors() {
    const stranger = new Anthropic({ ...WHERE, apiKey: "xai-nobody" });
    return {
      key: await failure(() => stranger.messages.create(ASKED)),
      model: await failure(() => client.messages.create({ ...ASKED, model: "grok-99" })),
      range: await failure(() => client.messages.create({ ...ASKED, max_tokens: 0 })),
      stream: await failure(() => client.messages.stream({ ...ASKED, model: "grok-99" }).finalMessage()),
    };
  },

  // From here on against the scripted model.
  async runner() {
    const weather = betaZodTool({
      name: "get_weather",
      description: "Get current weather for a location",
      inputSchema: z.object({ location: z.string() }),
      run: ({ location }) => `12 degrees in ${location}`,
    });
    const made = {};
    for (const stream of [false, true]) {
      const runner = client.beta.messages.toolRunner({
        model: "grok-4",
        max_tokens: 100,
        stream,
        messages: [{ role: "user", content: "What is the weather in Oslo?" }],
        tools: [weather],
      });
      const stops = [];
      for await (const one of runner) stops.push((stream ? await one.finalMessage() : one).stop_reason);
      made[stream ? "streamed" : "whole"] = { stops, text: texts(await runner.done()) };
    }
    return made;
  },

  async parsed() {
    const message = await client.messages.parse({
      ...ASKED,
      max_tokens: 60,
      output_config: { format: zodOutputFormat(Person) },
    });
    return message.parsed_output;
  },

  async code() {
    const stream = client.messages.stream({
      ...ASKED,
      max_tokens: 100,
      tools: [{ type: "code_execution_20250825", name: "code_execution" }],
    });
    const message = await stream.finalMessage();
    const ran = message.content.find((block) => block.type === "code_execution_tool_result");
    return { blocks: message.content.map((block) => block.type), stdout: ran.content.stdout, stop: message.stop_reason };
  },
};

const said = {};
for (const part of process.argv.slice(2)) said[part] = await parts[part]();
console.log(JSON.stringify(said));
