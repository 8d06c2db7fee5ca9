// Plays a user of the openai npm package against a proxy; prints what it saw as one line of JSON.
// Run by tests/test_sdks.py: node node_sdk.mjs PACKAGE BASE_URL
const [name, baseURL] = process.argv.slice(2);
const { default: OpenAI } = await import(name);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];
const tool = { type: "function", function: { name: "add", parameters: { type: "object", properties: {} } } };
const saw = {};

const answer = await client.chat.completions.create({ model: "mana/test", messages });
saw.chat = [answer.choices[0].message.content, answer.model];

saw.stream = "";
saw.stream_has_choices = true;
for await (const chunk of await client.chat.completions.create({ model: "mana/test", messages, stream: true })) {
  saw.stream_has_choices &&= chunk.choices.length > 0;
  saw.stream += chunk.choices[0]?.delta?.content ?? "";
}
saw.usage = [];
const stream_options = { include_usage: true };
for await (const c of await client.chat.completions.create({ model: "mana/test", messages, stream: true, stream_options })) {
  if (c.usage) saw.usage.push(c.usage.total_tokens);
}
const chats = client.chat.completions.stream ? client.chat.completions : client.beta.chat.completions;
const final = await chats.stream({ model: "mana/test", messages }).finalChatCompletion();
saw.helper = final.choices[0].message.content;
const called = await chats.stream({ model: "mana/tools", messages, tools: [tool] }).finalChatCompletion();
saw.tools = (called.choices[0].message.tool_calls ?? []).map((c) => [c.function.name, JSON.parse(c.function.arguments)]);

const response_format = { type: "json_schema", json_schema: { name: "x", schema: { type: "object" } } };
const structured = await client.chat.completions.create({ model: "mana/structured", messages, response_format });
saw.structured = JSON.parse(structured.choices[0].message.content);

saw.embedding = (await client.embeddings.create({ model: "mana/embed", input: ["a", "b"] })).data[1].embedding;
saw.models = (await client.models.list()).data.map((m) => m.id);
saw.model = (await client.models.retrieve("mana/test")).id;
saw.completion = (await client.completions.create({ model: "mana/test", prompt: "hi" })).choices[0].text;
const { response } = await client.chat.completions.create({ model: "mana/test", messages }).withResponse();
saw.resolved = response.headers.get("x-mana-llm-resolved");

async function raised(act) {
  try {
    await act();
  } catch (error) {
    return [error.constructor.name, error.status ?? null, Boolean(error.message)];
  }
  return ["nothing", null, false];
}
for (const status of ["400", "404", "409", "422", "401", "429"]) {
  saw[`error ${status}`] = await raised(() => client.chat.completions.create({ model: `status/${status}`, messages }));
}
saw["error alias"] = await raised(() => client.chat.completions.create({ model: "mana/nosuch", messages }));
saw.broken = await raised(async () => {
  for await (const _ of await client.chat.completions.create({ model: "mana/broken", messages, stream: true }));
});
console.log(JSON.stringify(saw));
