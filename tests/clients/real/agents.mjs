// Plays a user of OpenAI's Agents SDK for JavaScript against a proxy; prints what it saw as JSON.
// node agents.mjs FOLDER BASE_URL

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";

const [folder, base] = process.argv.slice(2);
const require = createRequire(path.join(folder, "package.json"));
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const { Agent, run, tool, setDefaultOpenAIClient, setTracingDisabled } = await load("@openai/agents");
const { default: OpenAI } = await load("openai");

setTracingDisabled(true);
setDefaultOpenAIClient(new OpenAI({ baseURL: `${base}/v1`, apiKey: "unused", maxRetries: 0 }));
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const say = tool({ name: "say", description: "says it", parameters, strict: true, execute: async () => "from-the-tool" });
const agent = (model, tools = []) => new Agent({ name: "test", instructions: "Be brief.", model, tools });

async function streamed(model, input, tools) {
  const result = await run(agent(model, tools), input, { stream: true });
  for await (const _ of result) { /* to the end */ }
  await result.completed;
  return result.finalOutput;
}

const saw = {};
saw.plain = (await run(agent("mana/test"), "say hi")).finalOutput;
saw.streamed = await streamed("mana/test", "say hi");
saw.tool = (await run(agent("mana/test", [say]), "use the tool")).finalOutput;
saw.streamedTool = await streamed("mana/test", "use the tool", [say]);
saw.dies = await streamed("mana/dies", "say hi");
try {
  saw.cut = ["answered", await streamed("mana/cut", "say hi")];
} catch (error) {
  saw.cut = ["raised", error.constructor.name];
}
console.log(JSON.stringify(saw));
process.exit(0);
