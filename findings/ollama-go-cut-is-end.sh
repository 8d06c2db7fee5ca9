#!/usr/bin/env bash
# Ollama's own Go client takes a stream that was cut for one that has ended.
#
# github.com/ollama/ollama/api v0.17.4, seen 2026-11-28 with Go 1.26.
# HTTP says plainly that a chunked answer is not complete: the last chunk is missing. The client's loop
# over the lines stops there as at the end, and Chat and Generate return no error: what came is the
# answer, without a line that says `done`. The connection may be closed or reset. Where a line is cut
# inside, its JSON cannot be read, and that alone is an error.
# To a proxy: whoever breaks an answer off has to say so in a line of its own, `{"error": "..."}`.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOPATH="$work/go" GOCACHE="$work/cache" GOFLAGS=-modcacherw GOTOOLCHAIN=local
mkdir "$work/probe"

cat >"$work/probe/main.go" <<'GO'
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/ollama/ollama/api"
)

const word = `{"model":"m","message":{"role":"assistant","content":"word "},"done":false}` + "\n"
const last = `{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}` + "\n"

// serve answers one request with body as one chunk, and then ends as told.
func serve(body string, how string) (net.Listener, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		request, err := http.ReadRequest(bufio.NewReader(connection))
		if err != nil {
			return
		}
		io.Copy(io.Discard, request.Body)
		fmt.Fprintf(connection, "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
		fmt.Fprintf(connection, "%x\r\n%s\r\n", len(body), body)
		time.Sleep(300 * time.Millisecond)
		switch how {
		case "ended":
			fmt.Fprint(connection, "0\r\n\r\n")
		case "reset":
			connection.(*net.TCPConn).SetLinger(0)
		}
		connection.Close()
	}()
	return listener, nil
}

func ask(body string, how string) string {
	listener, err := serve(body, how)
	if err != nil {
		return err.Error()
	}
	defer listener.Close()
	base := &url.URL{Scheme: "http", Host: listener.Addr().String()}
	client := api.NewClient(base, &http.Client{Timeout: 10 * time.Second})
	said, done := "", false
	request := &api.ChatRequest{Model: "m", Messages: []api.Message{{Role: "user", Content: "hi"}}}
	err = client.Chat(context.Background(), request, func(answer api.ChatResponse) error {
		said, done = said+answer.Message.Content, done || answer.Done
		return nil
	})
	verdict := "no error"
	if err != nil {
		verdict = "an error"
	}
	return fmt.Sprintf("%s, done %v, said %q", verdict, done, strings.TrimSpace(said))
}

func main() {
	fmt.Println("two words, end:", ask(word+word+last, "ended"))
	fmt.Println("two words, closed:", ask(word+word, "closed"))
	fmt.Println("two words, reset:", ask(word+word, "reset"))
	fmt.Println("two words, half a line, closed:", ask(word+word+word[:20], "closed"))
	fmt.Println("two words, an error's line, closed:", ask(word+word+`{"error":"broken"}`+"\n", "closed"))
}
GO

(cd "$work/probe" && go mod init probe && go get "github.com/ollama/ollama/api@v0.17.4" &&
  timeout 400 go build -o probe .) >"$work/log" 2>&1 || { cat "$work/log" >&2; echo "could not install" >&2; exit 2; }

cat >"$work/expected" <<'TEXT'
two words, end: no error, done true, said "word word"
two words, closed: no error, done false, said "word word"
two words, reset: no error, done false, said "word word"
two words, half a line, closed: an error, done false, said "word word"
two words, an error's line, closed: an error, done false, said "word word"
TEXT

timeout 60 "$work/probe/probe" 2>"$work/log" | tee "$work/seen" || true
cmp --silent "$work/expected" "$work/seen" ||
  { cat "$work/log" >&2; echo "CHANGED: the streams above are no longer read as stated" >&2; exit 1; }
