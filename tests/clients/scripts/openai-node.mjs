// The official Node SDK as its own pages show it: the base URL and the key changed.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const WHERE = { baseURL: process.env.JUBAL_URL, apiKey: process.env.JUBAL_KEY, maxRetries: 0, timeout: 60_000 };
const CAPITAL = [
  { role: "system", content: "You are a helpful assistant." },
  { role: "user", content: "What is the capital of France?" },
];
const ASKED = { model: "grok-4", messages: CAPITAL, max_tokens: 200, temperature: 0 };
const client = new OpenAI(WHERE);

const failure = async (work) => {
  try {
    await work();
  } catch (error) {
    const { status, code, type, param } = error;
    return { class: error.constructor.name, status, code, type, param, id: Boolean(error.requestID) };
  }
  return null;
};

const parts = {
  async chat() {
    const { data, request_id } = await client.chat.completions.create(ASKED).withResponse();
    return { text: data.choices[0].message.content, usage: data.usage, same: data.id === `chatcmpl-${request_id}` };
  },

  async stream() {
    const stream = client.chat.completions.stream({ ...ASKED, stream_options: { include_usage: true } });
    let pieces = 0;
    stream.on("content", () => (pieces += 1));
    const whole = await stream.finalChatCompletion();
    return { text: whole.choices[0].message.content, pieces, finish: whole.choices[0].finish_reason, usage: whole.usage };
  },

  async leaving() {
    // Without the tokens that end an answer (0 and 2 of SmolLM2) it would go on for 500.
    const endless = { max_tokens: 500, logit_bias: { 0: -100, 2: -100 } };
    const stream = await client.chat.completions.create({ ...ASKED, ...endless, stream: true });
    let seen = 0;
    for await (const _ of stream) if (++seen === 3) break; // which aborts the request
    return { seen, aborted: stream.controller.signal.aborted };
  },

  async parsed() {
    const Person = z.object({ name: z.string().max(20), age: z.number().int().min(0).max(150) });
    const answer = await client.chat.completions.parse({
      ...ASKED,
      max_tokens: 60,
      messages: [{ role: "user", content: "Extract: Jason is 25 years old" }],
      response_format: zodResponseFormat(Person, "person"),
    });
    return answer.choices[0].message.parsed;
  },

  // The scripted upstream calls the function once and then answers with its result.
  async tools() {
    const runner = client.chat.completions.runTools({
      model: "grok-4",
      stream: process.env.STREAMED === "1",
      messages: [{ role: "user", content: "What is the weather in Oslo?" }],
      tools: [
        zodFunction({
          name: "get_weather",
          description: "Get current weather for a location",
          parameters: z.object({ location: z.string() }),
          function: ({ location }) => ({ location, degrees: 12 }),
        }),
      ],
    });
    const text = await runner.finalContent();
    return { text, roles: runner.messages.map((message) => message.role) };
  },

  async responses() {
    const asked = { model: "grok-4", input: CAPITAL, max_output_tokens: 200, temperature: 0 };
    const whole = await client.responses.create(asked);
    const stream = client.responses.stream(asked);
    const types = [];
    for await (const event of stream) if (types.at(-1) !== event.type) types.push(event.type);
    const streamed = await stream.finalResponse();
    const next = await client.responses.create({
      model: "grok-4",
      previous_response_id: whole.id,
      input: "And of Spain?",
      max_output_tokens: 8,
    });
    const kept = await client.responses.retrieve(next.id);
    await client.responses.delete(next.id);
    return {
      text: whole.output_text,
      streamed: streamed.output_text,
      types,
      usage: whole.usage,
      grew: next.usage.input_tokens > whole.usage.total_tokens,
      kept: kept.output_text === next.output_text,
      gone: await failure(() => client.responses.retrieve(next.id)),
    };
  },

  // Against the scripted model.
  async responseTools() {
    const weather = zodResponsesFunction({
      name: "get_weather",
      description: "Get current weather for a location",
      parameters: z.object({ location: z.string() }),
    });
    const first = await client.responses.parse({ model: "grok-4", input: "Weather in Oslo?", tools: [weather] });
    const call = first.output.find((item) => item.type === "function_call");
    const second = await client.responses.create({
      model: "grok-4",
      previous_response_id: first.id,
      tools: [weather],
      input: [{ type: "function_call_output", call_id: call.call_id, output: "12 degrees" }],
    });
    return { call: [call.name, call.parsed_arguments], text: second.output_text };
  },

  async responseObject() {
    const Person = z.object({ name: z.string(), age: z.number().int() });
    const answer = await client.responses.parse({
      model: "grok-4",
      input: "Ada is 36. Who?",
      text: { format: zodTextFormat(Person, "person") },
    });
    return answer.output_parsed;
  },

  async embeddings() {
    const [coded, plain] = await Promise.all(
      [undefined, "float"].map((encoding_format) =>
        client.embeddings.create({ model: "grok-embedding-small", input: ["hello world", "bye"], encoding_format }),
      ),
    );
    return {
      lengths: coded.data.map((one) => one.embedding.length),
      same: JSON.stringify(coded.data) === JSON.stringify(plain.data),
      usage: coded.usage,
    };
  },

  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    return { names, one: (await client.models.retrieve("grok-4")).id };
  },

  async completions() {
    const answer = await client.completions.create({ model: "grok-4", prompt: "One, two, three,", max_tokens: 6 });
    return { text: answer.choices[0].text, id: answer.id };
  },

  async errors() {
    const ask = (more, options) => () => client.chat.completions.create({ ...ASKED, ...more }, options);
    const stranger = new OpenAI({ ...WHERE, apiKey: "xai-nobody" });
    return {
      key: await failure(() => stranger.models.list()),
      model: await failure(ask({ model: "grok-99" })),
      range: await failure(ask({ temperature: 9 })),
      type: await failure(ask({ temperature: "hot" })),
      stream: await failure(ask({ model: "grok-99", stream: true })),
    };
  },

  // The engine has one place. While the first request has it, the second is told 498, and the SDK comes again by itself.
  async capacity() {
    const first = await client.chat.completions.create({ model: "grok-4", messages: CAPITAL, stream: true });
    await first[Symbol.asyncIterator]().next();
    const statuses = [];
    const patient = new OpenAI({
      ...WHERE,
      maxRetries: 4,
      fetch: async (...given) => {
        const answer = await fetch(...given);
        statuses.push(answer.status);
        if (answer.status === 498) first.controller.abort();
        return answer;
      },
    });
    const answer = await patient.chat.completions.create({ model: "grok-4", messages: CAPITAL });
    return { statuses, text: answer.choices[0].message.content };
  },
};

const said = {};
for (const part of process.argv.slice(2)) said[part] = await parts[part]();
console.log(JSON.stringify(said));
