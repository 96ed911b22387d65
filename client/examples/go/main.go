// The program calls a Sidelight server in each of the ways that the contract has, with generated code and grpc-go.
//
//	sidelight stream TEXT        the target, and where each token looks, as soon as the token exists
//	sidelight deadline TEXT      a call that takes longer than its deadline
//	sidelight cancel TEXT        a call that the client cancels
//	sidelight error TEXT         a wrong request: the status, its reason and the field
//	sidelight many TEXT...       many texts on one stream
//	sidelight align HTML         a translation that keeps the markup, and the links of its words
//	sidelight vectors FOLDER     decodes the golden vectors
//	sidelight load STREAMS N     N requests, so many at a time: messages and tokens per second
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	pb "example.com/sidelight/sidelightv1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, describe(err))
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 2 {
		return errors.New("usage: sidelight stream|deadline|cancel|error|many|align|vectors|load ARGUMENT...")
	}
	command, arguments := arguments[0], arguments[1:]
	if command == "vectors" {
		return checkVectors(arguments[0])
	}
	connection, err := connect()
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pb.NewAttributionServiceClient(connection)
	switch text := arguments[0]; command {
	case "stream":
		return stream(client, text)
	case "deadline":
		return deadline(client, text)
	case "cancel":
		return cancel(client, text)
	case "error":
		return wrongRequest(client, text)
	case "many":
		return many(client, arguments)
	case "align":
		return align(client, text)
	case "load":
		return load(client, arguments)
	}
	return errors.New("unknown command " + command)
}

func plain(text string) *pb.Text { return &pb.Text{Kind: &pb.Text_Text{Text: text}} }

// stream prints each token with the source token that it looks at most, and the links of the words at the end.
func stream(client pb.AttributionServiceClient, text string) error {
	// A context that is cancelled on return ends the call, should the loop end early.
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	call, err := client.Attribute(ctx, &pb.AttributeRequest{
		Source: plain(text),
		Capture: &pb.Capture{
			Kinds:     []pb.AttentionKind{pb.AttentionKind_ATTENTION_KIND_CROSS},
			Heads:     &pb.HeadSelection{Selection: &pb.HeadSelection_Preset{Preset: "alignment"}},
			OverHeads: pb.Reduction_REDUCTION_MEAN,
		},
		LinkOptions: &pb.LinkOptions{},
		OffsetUnit:  pb.OffsetUnit_OFFSET_UNIT_UTF8, // a string of Go is bytes of UTF-8
	})
	if err != nil {
		return err
	}
	var source []*pb.Token
	for {
		response, err := call.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch event := response.Event.(type) {
		case *pb.AttributeResponse_Started:
			source = event.Started.Source
		case *pb.AttributeResponse_Steps:
			for _, step := range event.Steps.Steps {
				row, _, err := decode(step.Cross, 0, len(source))
				if err != nil {
					return err
				}
				greatest := 0
				for position := range row {
					if row[position] > row[greatest] {
						greatest = position
					}
				}
				fmt.Printf("%d %s <- %s %.2f\n", step.Index, show(step.Token), show(source[greatest]), row[greatest])
			}
		case *pb.AttributeResponse_Finished:
			fmt.Println(event.Finished.Text)
			links := event.Finished.Alignment
			printLinks(links.Source, links.Target, links.Links)
		}
	}
}

// show returns the characters of a token, or the name of a special token, which has no characters.
func show(token *pb.Token) string {
	if token.Text == "" {
		return token.Piece
	}
	return token.Text
}

func printLinks(source, target []*pb.Span, links []*pb.Link) {
	for _, link := range links {
		fmt.Printf("%s <- %s %.2f\n", target[link.Target].Text, source[link.Source].Text, link.Score)
	}
}

// long is a request that takes a while: the end of the sentence does not end it.
func long(text string) *pb.AttributeRequest {
	tokens := uint32(200)
	return &pb.AttributeRequest{
		Source: plain(text),
		Target: &pb.AttributeRequest_Decoding{Decoding: &pb.Decoding{MaxNewTokens: &tokens, IgnoreEos: true}},
	}
}

// read returns the number of steps of a call, up to its end or until there are enough.
func read(call pb.AttributionService_AttributeClient, enough int) (int, error) {
	steps := 0
	for steps < enough {
		response, err := call.Recv()
		if err != nil {
			return steps, err
		}
		steps += len(response.GetSteps().GetSteps())
	}
	return steps, nil
}

func deadline(client pb.AttributionServiceClient, text string) error {
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer stop()
	call, err := client.Attribute(ctx, long(text))
	if err == nil {
		_, err = read(call, 1000)
	}
	if status.Code(err) != codes.DeadlineExceeded {
		return fmt.Errorf("the call should be too late, but: %v", err)
	}
	fmt.Println("DEADLINE_EXCEEDED")
	return nil
}

func cancel(client pb.AttributionServiceClient, text string) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	call, err := client.Attribute(ctx, long(text))
	if err == nil {
		_, err = read(call, 3)
	}
	if err != nil {
		return err
	}
	stop() // the server ends the request, and frees its place in the batch
	if _, err = read(call, 1000); status.Code(err) != codes.Canceled {
		return fmt.Errorf("the call should be cancelled, but: %v", err)
	}
	fmt.Println("CANCELLED")
	return nil
}

// wrongRequest asks for a layer that no model has.
func wrongRequest(client pb.AttributionServiceClient, text string) error {
	layers := &pb.HeadSelection_Layers{Layers: &pb.LayerList{Layers: []uint32{0, 1000}}}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	call, err := client.Attribute(ctx, &pb.AttributeRequest{
		Source: plain(text), Capture: &pb.Capture{Heads: &pb.HeadSelection{Selection: layers}},
	})
	if err == nil {
		_, err = call.Recv()
	}
	fmt.Println(describe(err))
	return nil
}

// describe returns the code of a status, its reason, and the fields that are wrong.
func describe(err error) string {
	details, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	lines := []string{codeName(details.Code())}
	for _, detail := range details.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			lines = append(lines, detail.Reason)
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				lines = append(lines, violation.Field+": "+violation.Description)
			}
		}
	}
	if len(lines) == 1 { // no details: the error comes from gRPC
		lines = append(lines, details.Message())
	}
	return strings.Join(lines, " ")
}

// codeName returns the name of a code as all languages have it: Go writes InvalidArgument.
func codeName(code codes.Code) string {
	var name strings.Builder
	for i, letter := range code.String() {
		if i > 0 && letter >= 'A' && letter <= 'Z' {
			name.WriteByte('_')
		}
		name.WriteRune(letter)
	}
	return strings.ToUpper(name.String())
}

// many sends texts over one stream, and prints the results in the order of the texts.
func many(client pb.AttributionServiceClient, texts []string) error {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	call, err := client.AttributeMany(ctx)
	if err != nil {
		return err
	}
	// A stream reads and writes at the same time: the server reads no more texts while it has enough to do.
	go func() {
		for number, text := range texts {
			attribute := &pb.AttributeRequest{
				RequestId: fmt.Sprint(number), Source: plain(text), Capture: &pb.Capture{None: true},
			}
			request := &pb.AttributeManyRequest{Event: &pb.AttributeManyRequest_Attribute{Attribute: attribute}}
			if call.Send(request) != nil {
				return // Recv has the error
			}
		}
		call.CloseSend()
	}()
	results := map[string]string{}
	for {
		response, err := call.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		responses := []*pb.AttributeManyResponse{response}
		if batch := response.GetBatch(); batch != nil {
			responses = batch.Responses
		}
		for _, response := range responses {
			if finished := response.GetResponse().GetFinished(); finished != nil {
				results[response.RequestId] = finished.Text
			} else if failed := response.GetError(); failed != nil {
				code := codeName(codes.Code(failed.Code))
				results[response.RequestId] = fmt.Sprintf("%s %s %s", code, failed.Reason, failed.Message)
			}
		}
	}
	for number := range texts {
		fmt.Println(number, results[fmt.Sprint(number)])
	}
	return nil
}

// align translates HTML, and prints the translation with its markup and the links of the words.
func align(client pb.AttributionServiceClient, html string) error {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	response, err := client.Align(ctx, &pb.AlignRequest{
		Source: plain(html), Markup: &pb.Markup{Format: pb.MarkupFormat_MARKUP_FORMAT_HTML},
	})
	if err != nil {
		return err
	}
	fmt.Println(response.MarkedTargetText)
	printLinks(response.Source, response.Target, response.Links)
	return nil
}
