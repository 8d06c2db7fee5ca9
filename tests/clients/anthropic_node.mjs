// Plays a user of the @anthropic-ai/sdk npm package against a proxy; prints what it saw as one line of JSON.
// Run by tests/test_door_messages_sdks.py: node anthropic_node.mjs PACKAGE BASE_URL KEY
import { pathToFileURL } from "node:url";
const [folder, baseURL, apiKey] = process.argv.slice(2);
const module = (path) => import(pathToFileURL(`${folder}/${path}`).href);
const { default: Anthropic } = await module("index.mjs");
const { betaTool } = await module("helpers/beta/json-schema.mjs");
const client = new Anthropic({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];
const ask = (model, more = {}) => ({ model, max_tokens: 100, messages, ...more });
const tool = { name: "add", input_schema: { type: "object", properties: {} } };
const add = betaTool({
  name: "add",
  description: "Adds two numbers.",
  inputSchema: { type: "object", properties: { a: { type: "integer" }, b: { type: "integer" } } },
  run: ({ a, b }) => String(a + b),
});
const saw = {};

const answer = await client.messages.create(ask("mana/test"));
saw.message = [answer.content[0].text, answer.model, answer.stop_reason, answer.usage.output_tokens];
saw.request_id = Boolean(answer._request_id);

saw.events = [];
for await (const event of await client.messages.create(ask("mana/test", { stream: true }))) {
  if (event.type !== "content_block_delta") saw.events.push(event.type);
}
const stream = client.messages.stream(ask("mana/test"));
saw.helper = "";
stream.on("text", (text) => (saw.helper += text));
const final = await stream.finalMessage();
saw.final = [final.content[0].text, final.stop_reason, final.usage.input_tokens, final.usage.output_tokens];

const called = await client.messages.stream(ask("mana/tools", { tools: [tool] })).finalMessage();
saw.blocks = called.content.map((block) => block.type);
saw.tools = called.content.filter((block) => block.type === "tool_use").map((block) => [block.name, block.input]);

const done = await client.beta.messages.toolRunner(ask("mana/tools", { tools: [add] }));
saw.runner = done.content.at(-1).text;
const streaming = client.beta.messages.toolRunner(ask("mana/tools", { tools: [add], stream: true }));
for await (const each of streaming) saw["streaming runner"] = (await each.finalMessage()).content.at(-1).text;

const schema = { type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"], additionalProperties: false };
const parsed = await client.messages.create(ask("mana/structured", { output_config: { format: { type: "json_schema", schema } } }));
saw.structured = JSON.parse(parsed.content[0].text);
saw.tokens = (await client.messages.countTokens({ model: "mana/test", messages })).input_tokens;
const [first] = (await client.models.list()).data;
saw.models = [first.id, first.display_name, new Date(first.created_at).getUTCFullYear()];
saw.model = (await client.models.retrieve("mana/test")).id;
const { response } = await client.messages.create(ask("mana/test")).withResponse();
saw.resolved = response.headers.get("x-mana-llm-resolved");

async function raised(act) {
  try {
    await act();
  } catch (error) {
    return [error.constructor.name, error.status ?? null, error.type ?? null];
  }
  return ["nothing", null, null];
}
for (const status of ["400", "404", "413", "401", "429"]) {
  saw[`error ${status}`] = await raised(() => client.messages.create(ask(`status/${status}`)));
}
saw["error alias"] = await raised(() => client.messages.create(ask("mana/nosuch")));
saw["error key"] = await raised(() => client.withOptions({ apiKey: "wrong" }).messages.create(ask("mana/test")));
saw["error thread"] = await raised(() => client.messages.create(ask("mana/test", { thread: { type: "create" } })));
saw.broken = await raised(async () => {
  for await (const _ of await client.messages.create(ask("mana/broken", { stream: true })));
});
saw["broken helper"] = await raised(() => client.messages.stream(ask("mana/broken")).finalMessage());
console.log(JSON.stringify(saw));
