// The AI SDK with its xAI provider, as its own pages show it: the base URL and the key changed.
import { createXai } from "@ai-sdk/xai";
import * as ai from "ai";
import { z } from "zod";

const xai = createXai({ baseURL: process.env.JUBAL_URL, apiKey: process.env.JUBAL_KEY });
const model = xai("grok-4");
const ASKED = { model, temperature: 0, maxOutputTokens: 200, maxRetries: 0 };
const CAPITAL = { ...ASKED, prompt: "What is the capital of France?" };
const Person = z.object({ name: z.string(), age: z.number().int() });
const tools = {
  get_weather: ai.tool({
    description: "Get current weather for a location",
    inputSchema: z.object({ location: z.string() }),
    execute: async ({ location }) => `12 degrees in ${location}`,
  }),
};
const AGENT = { model, maxRetries: 0, prompt: "What is the weather in Oslo?", tools, stopWhen: ai.stepCountIs(4) };
const stepOf = (step) => ({
  calls: step.toolCalls.map(({ toolName, input }) => [toolName, input]),
  finish: step.finishReason,
});

const failure = async (work) => {
  try {
    await work();
  } catch (error) {
    return { class: error.name, status: error.statusCode, message: error.message };
  }
  return null;
};

const parts = {
  async generate() {
    const { text, finishReason, usage, response } = await ai.generateText(CAPITAL);
    return { text, finishReason, usage, model: response.modelId, dialect: model.provider };
  },

  async stream() {
    const result = ai.streamText(CAPITAL);
    const pieces = [];
    for await (const piece of result.textStream) pieces.push(piece);
    return { text: pieces.join(""), pieces: pieces.length, finishReason: await result.finishReason, usage: await result.usage };
  },

  async errors() {
    const stranger = createXai({ baseURL: process.env.JUBAL_URL, apiKey: "xai-nobody" });
    const streamed = ai.streamText({ ...CAPITAL, model: xai("grok-99"), onError() {} });
    return {
      key: await failure(() => ai.generateText({ ...CAPITAL, model: stranger("grok-4") })),
      model: await failure(() => ai.generateText({ ...CAPITAL, model: xai("grok-99") })),
      range: await failure(() => ai.generateText({ ...CAPITAL, temperature: 9 })),
      stream: await failure(async () => {
        for await (const part of streamed.fullStream) if (part.type === "error") throw part.error;
      }),
    };
  },

  // From here on against the scripted model.
  async agent() {
    const { text, steps, totalUsage } = await ai.generateText(AGENT);
    return { text, steps: steps.map(stepOf), tokens: totalUsage.totalTokens };
  },

  async streamedAgent() {
    const result = ai.streamText(AGENT);
    const types = [];
    for await (const part of result.fullStream) if (types.at(-1) !== part.type) types.push(part.type);
    return { text: await result.text, types, steps: (await result.steps).map(stepOf) };
  },

  async object() {
    const { object } = await ai.generateObject({ ...ASKED, schema: Person, prompt: "Ada is 36. Who?" });
    const { output } = await ai.generateText({ ...ASKED, output: ai.Output.object({ schema: Person }), prompt: "Ada is 36. Who?" });
    const streamed = ai.streamObject({ ...ASKED, schema: Person, prompt: "Ada is 36. Who?" });
    const partial = [];
    for await (const one of streamed.partialObjectStream) partial.push(one);
    return { object, output, streamed: await streamed.object, partial: partial.length };
  },

  async code() {
    const result = ai.streamText({ ...AGENT, prompt: "6 * 7?", tools: { code_execution: xai.tools.codeExecution() } });
    const types = [];
    for await (const part of result.fullStream) if (part.type.startsWith("tool-")) types.push(part.type);
    return { text: await result.text, types, steps: (await result.steps).length };
  },
};

const said = {};
for (const part of process.argv.slice(2)) said[part] = await parts[part]();
console.log(JSON.stringify(said));
