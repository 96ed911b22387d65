package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	pb "example.com/sidelight/sidelightv1"
)

type result struct {
	Streams  int     `json:"streams"`
	Requests int     `json:"requests"`
	Messages int64   `json:"messages"`
	Tokens   int64   `json:"tokens"`
	Seconds  float64 `json:"seconds"`
}

// load reads a JSON list of texts from the standard input, and sends them again and again: a number of requests, so many
// at a time, with all cross-attention. Then it prints one line of JSON.
func load(client pb.AttributionServiceClient, arguments []string) error {
	var texts []string
	if err := json.NewDecoder(os.Stdin).Decode(&texts); err != nil {
		return fmt.Errorf("the standard input is no JSON list of texts: %w", err)
	}
	streams, err := strconv.Atoi(arguments[0])
	if err != nil {
		return err
	}
	requests, err := strconv.Atoi(arguments[len(arguments)-1])
	if err != nil {
		return err
	}
	if len(arguments) != 2 || len(texts) == 0 {
		return errors.New("usage: sidelight load STREAMS REQUESTS, with texts on the standard input")
	}
	var next, messages, tokens int64
	failures := make(chan error, streams)
	var workers sync.WaitGroup
	began := time.Now()
	for worker := 0; worker < streams; worker++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for number := atomic.AddInt64(&next, 1); number <= int64(requests); number = atomic.AddInt64(&next, 1) {
				text := texts[int(number-1)%len(texts)]
				if err := readAll(client, text, &messages, &tokens); err != nil {
					failures <- err
					return
				}
			}
		}()
	}
	workers.Wait()
	seconds := time.Since(began).Seconds()
	select {
	case err := <-failures:
		return err
	default:
	}
	return json.NewEncoder(os.Stdout).Encode(result{streams, requests, messages, tokens, seconds})
}

// readAll reads one answer to its end, and checks that no step is missing.
func readAll(client pb.AttributionServiceClient, text string, messages, tokens *int64) error {
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Minute)
	defer stop()
	call, err := client.Attribute(ctx, &pb.AttributeRequest{Source: plain(text)})
	if err != nil {
		return err
	}
	steps := uint32(0)
	for {
		response, err := call.Recv()
		if err == io.EOF {
			return fmt.Errorf("a stream of %d steps ended without saying so", steps)
		}
		if err != nil {
			return err
		}
		atomic.AddInt64(messages, 1)
		for _, step := range response.GetSteps().GetSteps() {
			if step.Index != steps || len(step.Cross.GetValues()) == 0 {
				return fmt.Errorf("step %d came after %d steps", step.Index, steps)
			}
			steps++
		}
		if finished := response.GetFinished(); finished != nil {
			if finished.Usage.TargetTokens != steps {
				return fmt.Errorf("%d steps of %d", steps, finished.Usage.TargetTokens)
			}
			atomic.AddInt64(tokens, int64(steps))
			return nil
		}
	}
}
