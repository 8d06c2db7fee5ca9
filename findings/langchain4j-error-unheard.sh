#!/usr/bin/env bash
# langchain4j does not hear an error event of a chat stream, unless `event: error` names it: what came is the answer.
#
# dev.langchain4j langchain4j-open-ai 1.19.0, JDK 17; seen 2026-11-29.
# A stream says one word, then `data: {"error": {...}}`, `[DONE]`, and ends: vLLM's way to say that it failed in mid
# stream. OpenAI's own SDKs raise. langchain4j reads the event as a chunk without choices, and calls
# onCompleteResponse with the one word. With a line `event: error` before it, as LM Studio writes, it calls onError; and
# so it does where the connection is cut instead of ended, but then it says "closed" and not what the error was.
# To a proxy: an error event alone, however well formed, does not keep a client from taking half an answer for whole;
# the connection has to end without the last chunk, too.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/pom.xml" <<'XML'
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>finding</groupId><artifactId>finding</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>dev.langchain4j</groupId><artifactId>langchain4j-open-ai</artifactId><version>1.19.0</version>
    </dependency>
  </dependencies>
</project>
XML
mvn -q -B -f "$work/pom.xml" dependency:copy-dependencies -DoutputDirectory="$work/lib" >&2 ||
  { echo "could not install" >&2; exit 2; }

cat >"$work/Read.java" <<'JAVA'
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.chat.response.StreamingChatResponseHandler;
import dev.langchain4j.model.openai.OpenAiStreamingChatModel;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

public class Read {
    public static void main(String[] arguments) throws Exception {
        var model = OpenAiStreamingChatModel.builder().baseUrl(arguments[0]).apiKey("x").modelName("m").build();
        var said = new CompletableFuture<String>();
        model.chat("hi", new StreamingChatResponseHandler() {
            public void onPartialResponse(String text) {}

            public void onCompleteResponse(ChatResponse response) {
                said.complete("complete: " + response.aiMessage().text());
            }

            public void onError(Throwable error) {
                said.complete("error: " + (error.getMessage().contains("why it broke") ? "why" : error.getMessage()));
            }
        });
        System.out.println(said.get(20, TimeUnit.SECONDS));
        System.exit(0);
    }
}
JAVA
javac -cp "$work/lib/*" -d "$work" "$work/Read.java"

cat >"$work/probe.py" <<'PY'
import json
import socket
import subprocess
import sys
import threading

WORK = sys.argv[1]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CHUNK["choices"] = [{"index": 0, "delta": {"content": "one"}, "finish_reason": None}]
WORD = b"data: " + json.dumps(CHUNK).encode() + b"\n\n"
ERROR = b"data: " + json.dumps({"error": {"message": "why it broke", "type": "server_error"}}).encode() + b"\n\n"
DONE = b"data: [DONE]\n\n"
server = socket.create_server(("127.0.0.1", 0))
URL = f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def answer(events, ended):
    connection, _ = server.accept()
    with connection:
        asked = b""
        while b'"stream"' not in asked:
            asked += connection.recv(65536)
        connection.sendall(HEAD)
        for event in events:
            connection.sendall(b"%x\r\n%b\r\n" % (len(event), event))
        if ended:
            connection.sendall(b"0\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)


def run(*events, ended):
    thread = threading.Thread(target=answer, args=(events, ended))
    thread.start()
    command = ["java", "-cp", f"{WORK}/lib/*:{WORK}", "Read", URL]
    said = subprocess.run(command, capture_output=True, text=True, timeout=40, check=True).stdout.strip()
    thread.join()
    return said


changed = False
for name, events, ended, expected in (
    ("an error event, [DONE], a clean end", (WORD, ERROR, DONE), True, "complete: one"),
    ("the same, named by event: error", (WORD, b"event: error\n" + ERROR, DONE), True, "error: why"),
    ("an error event, a cut", (WORD, ERROR), False, "error: closed"),
):
    said = run(*events, ended=ended)
    print(f"{name}: {said}")
    changed |= said != expected
if changed:
    sys.exit("CHANGED: the outcomes above are no longer as stated")
PY

timeout 150 python3 "$work/probe.py" "$work" || { echo "not as stated, or not done in time" >&2; exit 1; }
