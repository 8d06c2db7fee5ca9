// What the benchmark's upstream says in each API's words. "@@" and 19 digits are the clock, "1000" in a piece is a number
// that another piece does not have: a sequence number, a counter, the nanoseconds of a date.

#define DIGITS "@@0000000000000000000"
#define WORDS DIGITS " a few words more."
#define TEXT DIGITS " %.*s"  // of a whole answer

struct dialect {
    const char *path;   // what the request's path holds
    const char *type;   // of a stream
    const char *first;  // before the first piece; may be empty, as all that follow
    const char *piece;
    const char *finish;
    const char *counted;  // the usage, where the request asks for it
    const char *end;
    const char *answer;   // whole; a format string
};

// -- OpenAI ----------------------------------------------------------------------------------------------------------

#define ID "\"id\":\"chatcmpl-bench0123456789\",\"created\":1767225600,\"model\":\"bench\""
#define CHUNK(delta, finish) "data: {" ID ",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{" \
    delta "},\"logprobs\":null,\"finish_reason\":" finish "}]}\n\n"
#define USAGE "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":100,\"total_tokens\":112}"

#define CHAT { "/chat/completions", "text/event-stream", \
    CHUNK("\"role\":\"assistant\",\"content\":\"\"", "null"), CHUNK("\"content\":\"" WORDS "\"", "null"), CHUNK("", "\"stop\""), \
    "data: {" ID ",\"object\":\"chat.completion.chunk\",\"choices\":[]," USAGE "}\n\n", "data: [DONE]\n\n", \
    "{" ID ",\"object\":\"chat.completion\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"" TEXT \
    "\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}]," USAGE "}" }

// -- Ollama's own ------------------------------------------------------------------------------------------------------

#define LINE(said, more) "{\"model\":\"bench\",\"created_at\":\"2026-01-01T00:00:00.12341000Z\",\"message\":{\"role\":" \
    "\"assistant\",\"content\":\"" said "\"},\"done\":" more "}\n"
#define LAST "true,\"done_reason\":\"stop\",\"total_duration\":174560334,\"load_duration\":101397084," \
    "\"prompt_eval_count\":12,\"prompt_eval_duration\":13074791,\"eval_count\":100,\"eval_duration\":52479709"

#define OLLAMA { "/api/chat", "application/x-ndjson", "", LINE(WORDS, "false"), "", "", LINE("", LAST), LINE(TEXT, LAST) }

// -- Gemini ------------------------------------------------------------------------------------------------------------

#define CANDIDATE(said, finish) "{\"candidates\": [{\"content\": {\"parts\": [{\"text\": \"" said "\"}],\"role\": \"model\"}," \
    finish "\"index\": 0}],\"usageMetadata\": {\"promptTokenCount\": 12,\"candidatesTokenCount\": 1000,\"totalTokenCount\": " \
    "1000,\"promptTokensDetails\": [{\"modality\": \"TEXT\",\"tokenCount\": 12}]},\"modelVersion\": \"bench\",\"responseId\": " \
    "\"bench0123456789\"}"
#define GEMINI_PIECE "data: " CANDIDATE(WORDS, "") "\r\n\r\n"
#define GEMINI_END "data: " CANDIDATE("", "\"finishReason\": \"STOP\",") "\r\n\r\n"

#define GEMINI { ":streamGenerateContent", "text/event-stream", "", GEMINI_PIECE, "", "", GEMINI_END, "" }
#define GEMINI_WHOLE { ":generateContent", "", "", "", "", "", "", CANDIDATE(TEXT, "\"finishReason\": \"STOP\",") }

// -- Responses ---------------------------------------------------------------------------------------------------------

#define NAMED(kind, more) "event: " kind "\ndata: {\"type\":\"" kind "\"," more "}\n\n"
#define RESPONSE(status, output, usage) "{\"id\":\"resp_1\",\"object\":\"response\",\"created_at\":1767225600,\"status\":\"" \
    status "\",\"error\":null,\"incomplete_details\":null,\"instructions\":null,\"metadata\":{},\"parallel_tool_calls\":true," \
    "\"store\":false,\"temperature\":1.0,\"tool_choice\":\"auto\",\"tools\":[],\"top_p\":1.0,\"model\":\"bench\",\"output\":[" \
    output "],\"usage\":" usage "}"
#define COUNTS "{\"input_tokens\":12,\"output_tokens\":100,\"total_tokens\":112}"
#define PART(text) "{\"type\":\"output_text\",\"text\":\"" text "\",\"annotations\":[],\"logprobs\":[]}"
#define ITEM(status, parts) "{\"id\":\"msg_1\",\"type\":\"message\",\"status\":\"" status "\",\"role\":\"assistant\",\"content\":[" parts "]}"
#define AT "\"item_id\":\"msg_1\",\"output_index\":0,\"content_index\":0"

#define RESPONSES { "/responses", "text/event-stream", \
    NAMED("response.created", "\"sequence_number\":0,\"response\":" RESPONSE("in_progress", "", "null")) \
    NAMED("response.in_progress", "\"sequence_number\":1,\"response\":" RESPONSE("in_progress", "", "null")) \
    NAMED("response.output_item.added", "\"sequence_number\":2,\"output_index\":0,\"item\":" ITEM("in_progress", "")) \
    NAMED("response.content_part.added", "\"sequence_number\":3," AT ",\"part\":" PART("")), \
    NAMED("response.output_text.delta", "\"sequence_number\":1000," AT ",\"delta\":\"" WORDS "\",\"logprobs\":[]"), \
    NAMED("response.output_text.done", "\"sequence_number\":9997," AT ",\"text\":\"words\",\"logprobs\":[]") \
    NAMED("response.output_item.done", "\"sequence_number\":9998,\"output_index\":0,\"item\":" ITEM("completed", PART("words"))), \
    "", \
    NAMED("response.completed", "\"sequence_number\":9999,\"response\":" RESPONSE("completed", ITEM("completed", PART("words")), COUNTS)), \
    RESPONSE("completed", ITEM("completed", PART(TEXT)), COUNTS) }

// -- Messages ----------------------------------------------------------------------------------------------------------

#define MESSAGE(content, stop) "{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"bench\",\"content\":[" \
    content "],\"stop_reason\":" stop ",\"stop_sequence\":null,\"usage\":{\"input_tokens\":12,\"output_tokens\":100}}"

#define MESSAGES { "/messages", "text/event-stream", \
    NAMED("message_start", "\"message\":" MESSAGE("", "null")) \
    NAMED("content_block_start", "\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}"), \
    NAMED("content_block_delta", "\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"" WORDS "\"}"), \
    NAMED("content_block_stop", "\"index\":0"), "", \
    NAMED("message_delta", "\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":100}") \
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", \
    MESSAGE("{\"type\":\"text\",\"text\":\"" TEXT "\"}", "\"end_turn\"") }

// -- what is asked beside answers ----------------------------------------------------------------------------------------

static const struct { const char *path, *said; } LISTS[] = {
    {"/api/ps", "{\"models\":[]}"},
    {"/api/show", "{\"capabilities\":[\"completion\"],\"model_info\":{}}"},
    {"/api/tags", "{\"models\":[{\"name\":\"bench\",\"model\":\"bench\",\"modified_at\":\"2026-01-01T00:00:00Z\",\"size\":1," \
                  "\"details\":{\"context_length\":131072},\"capabilities\":[\"completion\"]}]}"},
    {"", "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1767225600,\"owned_by\":\"bench\"," \
         "\"max_model_len\":131072}],\"status\":\"healthy\",\"model_path\":\"bench\"}"},
};
