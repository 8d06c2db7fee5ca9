// Plays a user of go-openai and of Ollama's own Go client against a proxy; prints what it saw as JSON.
// clients BASE_URL
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/ollama/ollama/api"
	openai "github.com/sashabaranov/go-openai"
)

type row map[string]any

func fail(err error) string {
	if err == nil {
		return "no error"
	}
	return "error: " + err.Error()
}

func goOpenAI(base string) row {
	ctx := context.Background()
	config := openai.DefaultConfig("unused")
	config.BaseURL = base + "/v1"
	client := openai.NewClientWithConfig(config)
	say := []openai.ChatCompletionMessage{{Role: "user", Content: "say hi"}}
	streamed := func(model string) (string, error) {
		stream, err := client.CreateChatCompletionStream(ctx, openai.ChatCompletionRequest{Model: model, Messages: say})
		if err != nil {
			return "", err
		}
		defer stream.Close()
		text := ""
		for {
			part, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return text, nil
			}
			if err != nil {
				return text, err
			}
			if len(part.Choices) > 0 {
				text += part.Choices[0].Delta.Content
			}
		}
	}
	saw := row{}
	plain, err := client.CreateChatCompletion(ctx, openai.ChatCompletionRequest{Model: "mana/test", Messages: say})
	if err != nil {
		return row{"plain": fail(err)}
	}
	saw["plain"] = plain.Choices[0].Message.Content
	saw["streamed"], _ = streamed("mana/test")
	tool := openai.Tool{Type: "function", Function: &openai.FunctionDefinition{Name: "say", Parameters: json.RawMessage(`{"type":"object"}`)}}
	use := []openai.ChatCompletionMessage{{Role: "user", Content: "use the tool"}}
	told, err := client.CreateChatCompletion(ctx, openai.ChatCompletionRequest{Model: "mana/test", Messages: use, Tools: []openai.Tool{tool}})
	if err == nil && len(told.Choices[0].Message.ToolCalls) > 0 {
		saw["tool"] = told.Choices[0].Message.ToolCalls[0].Function.Name
	}
	saw["dies"], _ = streamed("mana/dies")
	text, err := streamed("mana/cut")
	saw["cut"] = []any{text, err != nil}
	models, err := client.ListModels(ctx)
	saw["models"] = err == nil && len(models.Models) > 0
	return saw
}

func ollama(base string) row {
	ctx := context.Background()
	at, _ := url.Parse(base)
	client := api.NewClient(at, http.DefaultClient)
	say := []api.Message{{Role: "user", Content: "say hi"}}
	chat := func(model string, stream bool) (string, error) {
		text, done := "", false
		err := client.Chat(ctx, &api.ChatRequest{Model: model, Messages: say, Stream: &stream}, func(part api.ChatResponse) error {
			text += part.Message.Content
			done = done || part.Done
			return nil
		})
		if err == nil && !done {
			err = errors.New("no end")
		}
		return text, err
	}
	saw := row{}
	saw["heartbeat"] = client.Heartbeat(ctx) == nil
	version, err := client.Version(ctx)
	saw["version"] = err == nil && version != ""
	list, err := client.List(ctx)
	saw["list"] = err == nil && len(list.Models) > 0
	_, err = client.Show(ctx, &api.ShowRequest{Model: "mana/test"})
	saw["show"] = err == nil
	_, err = client.ListRunning(ctx)
	saw["ps"] = err == nil
	saw["plain"], _ = chat("mana/test:latest", false)
	saw["streamed"], _ = chat("mana/test", true)
	text := ""
	err = client.Generate(ctx, &api.GenerateRequest{Model: "mana/test", Prompt: "say hi"}, func(part api.GenerateResponse) error {
		text += part.Response
		return nil
	})
	saw["generate"] = text
	embedded, err := client.Embed(ctx, &api.EmbedRequest{Model: "mana/test", Input: "x"})
	saw["embed"] = err == nil && len(embedded.Embeddings) == 1
	saw["tool"] = toolWithOllama(ctx, client)
	saw["dies"], _ = chat("mana/dies", true)
	text, err = chat("mana/cut", true)
	saw["cut"] = []any{text, err != nil && err.Error() != "no end"}
	return saw
}

// A call, its result, and what the model makes of that.
func toolWithOllama(ctx context.Context, client *api.Client) string {
	var tools api.Tools
	_ = json.Unmarshal([]byte(`[{"type":"function","function":{"name":"say","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}]`), &tools)
	messages := []api.Message{{Role: "user", Content: "use the tool"}}
	for turn := 0; turn < 3; turn++ {
		answer := api.Message{Role: "assistant"}
		err := client.Chat(ctx, &api.ChatRequest{Model: "mana/test", Messages: messages, Tools: tools}, func(part api.ChatResponse) error {
			answer.Content += part.Message.Content
			answer.ToolCalls = append(answer.ToolCalls, part.Message.ToolCalls...)
			return nil
		})
		if err != nil {
			return fail(err)
		}
		if len(answer.ToolCalls) == 0 {
			return answer.Content
		}
		messages = append(messages, answer)
		for _, call := range answer.ToolCalls {
			messages = append(messages, api.Message{Role: "tool", ToolName: call.Function.Name, Content: "from-the-tool"})
		}
	}
	return "calls without end"
}

func main() {
	told, _ := json.Marshal(map[string]row{"go-openai": goOpenAI(os.Args[1]), "ollama": ollama(os.Args[1])})
	fmt.Println(string(told))
}
