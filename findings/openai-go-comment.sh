#!/usr/bin/env bash
# openai-go before 3.43.0 ends a stream at the first heartbeat.
#
# github.com/openai/openai-go/v3 v3.42.0 against v3.43.0, seen 2026-11-28 with Go 1.26.
# SSE lets a server keep a silent connection open with a comment, and its usual form is ": text" with
# a blank line. The blank line dispatched an event without data here, whose JSON cannot be read: the
# loop ends with "unexpected end of JSON input", before the first word or in the middle of the answer.
# A comment without its blank line was always read well. v3.43.0 reads all of them. (The probe uses
# the SDK's own stream reader without its client, which takes minutes to compile.)
# To a proxy: its own heartbeats, and the comments that it relays, are lone lines as long as older
# Go programs are about, and those are compiled in.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export GOPATH="$work/go" GOCACHE="$work/cache" GOFLAGS=-modcacherw GOTOOLCHAIN=local

cat >"$work/main.go" <<'GO'
package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/openai/openai-go/v3/packages/ssestream"
)

type chunk struct {
	Word string `json:"word"`
}

func read(body string) string {
	answer := &http.Response{
		Header: http.Header{"Content-Type": {"text/event-stream"}},
		Body:   io.NopCloser(strings.NewReader(body)),
	}
	stream := ssestream.NewStream[chunk](ssestream.NewDecoder(answer), nil)
	words := []string{}
	for stream.Next() {
		words = append(words, stream.Current().Word)
	}
	if err := stream.Err(); err != nil {
		return strings.Join(append(words, err.Error()), ", ")
	}
	return strings.Join(append(words, "end"), ", ")
}

func main() {
	one, two, done := "data: {\"word\": \"one\"}\n\n", "data: {\"word\": \"two\"}\n\n", "data: [DONE]\n\n"
	fmt.Println("no comment:", read(one+two+done))
	fmt.Println("lone comment:", read(one+": ping\n"+two+done))
	fmt.Println("comment, blank line:", read(one+": ping\n\n"+two+done))
	fmt.Println("comment, blank line, first:", read(": ping\n\n"+one+two+done))
}
GO

for version in v3.42.0 v3.43.0; do
  mkdir "$work/$version"
  cp "$work/main.go" "$work/$version"
  (cd "$work/$version" && go mod init probe && go get "github.com/openai/openai-go/v3/packages/ssestream@$version" &&
    timeout 400 go build -o probe .) >"$work/log" 2>&1 || { cat "$work/log" >&2; echo "could not install" >&2; exit 2; }
done

cat >"$work/expected" <<'TEXT'
v3.42.0
no comment: one, two, end
lone comment: one, two, end
comment, blank line: one, unexpected end of JSON input
comment, blank line, first: unexpected end of JSON input
v3.43.0
no comment: one, two, end
lone comment: one, two, end
comment, blank line: one, two, end
comment, blank line, first: one, two, end
TEXT

for version in v3.42.0 v3.43.0; do
  echo "$version"
  timeout 20 "$work/$version/probe" || true
done | tee "$work/seen"
cmp --silent "$work/expected" "$work/seen" ||
  { echo "CHANGED: the streams above are no longer read as stated" >&2; exit 1; }
