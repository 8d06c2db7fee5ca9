// Plays a user of `client.responses` of the openai npm package against a proxy; prints what it saw as one line of JSON.
// Run by tests/test_door_responses_sdks.py: node responses_sdk.mjs PACKAGE BASE_URL
const [name, baseURL] = process.argv.slice(2);
const { default: OpenAI } = await import(name);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const responses = client.responses;
const parameters = { type: "object", properties: { a: { type: "integer" } }, required: ["a"] };
const tool = { type: "function", name: "add", strict: true, parameters };
const schema = { type: "object", properties: { total: { type: "integer" } } };
const text = { format: { type: "json_schema", name: "sum", schema } };
const saw = {};

const answer = await responses.create({ model: "mana/test", input: "hi" });
saw.create = [answer.output_text, answer.model, answer.status, answer.usage.total_tokens];
const events = [];
for await (const event of await responses.create({ model: "mana/test", input: "hi", stream: true })) events.push(event);
saw.events = [events[0].type, events.at(-1).type, events.map((event) => event.sequence_number)];
const kinds = [];
const stream = responses.stream({ model: "mana/test", input: "hi" });
for await (const event of stream) kinds.push(event.type);
saw.stream = [(await stream.finalResponse()).output_text, kinds[0], kinds.at(-1)];

const final = await responses.stream({ model: "mana/tools", input: "hi", tools: [tool] }).finalResponse();
saw.tools = final.output.map((item) => [item.type, item.name, JSON.parse(item.arguments)]);
const result = { type: "function_call_output", call_id: final.output[0].call_id, output: "3" };
const previous_response_id = final.id;
saw.continued = (await responses.create({ model: "mana/test", input: [result], previous_response_id })).output_text;
const history = [{ role: "user", content: "hi" }, ...final.output, result];
saw["whole history"] = (await responses.create({ model: "mana/test", input: history, store: false })).output_text;

saw.parse = (await responses.parse({ model: "mana/structured", input: "hi", text })).output_parsed.total;
const parsing = responses.stream({ model: "mana/structured", input: "hi", text });
saw["stream parse"] = JSON.parse((await parsing.finalResponse()).output_text).total;

saw.retrieve = (await responses.retrieve(answer.id)).output_text;
saw["input items"] = [];
for await (const item of responses.inputItems.list(answer.id)) saw["input items"].push([item.role, item.content[0].text]);
await responses.delete(answer.id);

async function raised(ask) {
  try {
    await ask();
  } catch (error) {
    return [error.constructor.name, error.status ?? null, error.code ?? null];
  }
  return ["nothing", null, null];
}
saw.gone = await raised(() => responses.retrieve(answer.id));
const unknown = { model: "mana/test", input: "hi", previous_response_id: answer.id };
saw.unknown = await raised(() => responses.create(unknown));
saw.refused = await raised(() => responses.create({ model: "mana/test", input: [{ type: "computer_call" }] }));
saw.broken = await raised(async () => {
  for await (const _ of await responses.create({ model: "mana/broken", input: "hi", stream: true }));
});
console.log(JSON.stringify(saw));
