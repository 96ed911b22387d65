package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"

	pb "example.com/sidelight/sidelightv1"
	protov1 "github.com/golang/protobuf/proto"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// vector is what the JSON file of a golden vector has beside the bytes.
type vector struct {
	Method    string
	Status    *statusJSON
	Requests  []json.RawMessage
	Responses []json.RawMessage
	Arrays    []array
}

type array struct {
	Path          string
	PositionsAxis int
	Shape         []int
	Values        []float32
}

type statusJSON struct {
	Code    int32
	Message string
	Details []struct {
		Reason          string
		FieldViolations []struct{ Field, Description string }
	}
}

type counts struct{ messages, arrays, texts int }

// checkVectors decodes all golden vectors, and compares them with their JSON and their arrays.
func checkVectors(folder string) error {
	var names []string
	if err := readJSON(filepath.Join(folder, "index.json"), &names); err != nil {
		return err
	}
	var total counts
	for _, name := range names {
		if err := checkVector(filepath.Join(folder, name), &total); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	fmt.Printf("%d vectors, %d messages, %d arrays, %d texts at their offsets\n",
		len(names), total.messages, total.arrays, total.texts)
	return nil
}

func checkVector(path string, total *counts) error {
	var expected vector
	if err := readJSON(path+".json", &expected); err != nil {
		return err
	}
	service := pb.File_sidelight_v1_attribution_service_proto.Services().ByName("AttributionService")
	method := service.Methods().ByName(protoreflect.Name(expected.Method))
	if _, err := checkMessages(path+".requests.bin", expected.Requests, method.Input(), total); err != nil {
		return err
	}
	responses, err := checkMessages(path+".responses.bin", expected.Responses, method.Output(), total)
	if err != nil {
		return err
	}
	if expected.Status != nil {
		if err := checkStatus(path+".status.bin", expected.Status); err != nil {
			return err
		}
		total.messages++
	}
	found := &finder{arrays: expected.Arrays}
	for _, response := range responses {
		if err := found.visit(response.ProtoReflect()); err != nil {
			return err
		}
	}
	if len(found.arrays) > 0 {
		return fmt.Errorf("%d arrays are not in the messages", len(found.arrays))
	}
	total.arrays += len(expected.Arrays)
	total.texts += found.texts
	return nil
}

// checkMessages reads messages as gRPC sends them: a byte 0, four bytes of length, and the message.
func checkMessages(
	path string, expected []json.RawMessage, kind protoreflect.MessageDescriptor, total *counts,
) ([]proto.Message, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var messages []proto.Message
	for len(data) > 0 {
		end := 5 + int(binary.BigEndian.Uint32(data[1:]))
		if len(messages) == len(expected) {
			return nil, errors.New("more messages than in the JSON")
		}
		message, other := newMessage(kind), newMessage(kind)
		if err := checkMessage(data[5:end], expected[len(messages)], message, other); err != nil {
			return nil, fmt.Errorf("%s, message %d: %w", filepath.Base(path), len(messages), err)
		}
		messages, data = append(messages, message), data[end:]
	}
	if len(messages) != len(expected) {
		return nil, errors.New("fewer messages than in the JSON")
	}
	total.messages += len(messages)
	return messages, nil
}

func newMessage(kind protoreflect.MessageDescriptor) proto.Message {
	found, err := protoregistry.GlobalTypes.FindMessageByName(kind.FullName())
	if err != nil {
		panic(err)
	}
	return found.New().Interface()
}

// checkStatus compares the status of an error with its JSON, by what a client reads of it.
func checkStatus(path string, expected *statusJSON) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	decoded := &rpc.Status{}
	if err := protov1.Unmarshal(data, decoded); err != nil {
		return err
	}
	words := []string{codeName(codes.Code(expected.Code))}
	for _, detail := range expected.Details {
		if detail.Reason != "" {
			words = append(words, detail.Reason)
		}
		for _, violation := range detail.FieldViolations {
			words = append(words, violation.Field+": "+violation.Description)
		}
	}
	if found := describe(status.ErrorProto(decoded)); found != strings.Join(words, " ") {
		return fmt.Errorf("the status says %q, not %q", found, words)
	}
	return nil
}

// checkMessage decodes bytes, writes the message again, and compares the message with the JSON.
func checkMessage(data []byte, text json.RawMessage, message, other proto.Message) error {
	if err := proto.Unmarshal(data, message); err != nil {
		return err
	}
	if len(message.ProtoReflect().GetUnknown()) > 0 {
		return errors.New("the message has unknown fields")
	}
	// Go writes the fields of a oneof after the others: the bytes are as many, in another order.
	again, err := proto.Marshal(message)
	if err != nil || len(again) != len(data) {
		return fmt.Errorf("%d bytes became %d: %v", len(data), len(again), err)
	}
	if err := protojson.Unmarshal(text, other); err != nil {
		return err
	}
	if !proto.Equal(message, other) {
		return errors.New("the JSON is another message")
	}
	return nil
}

// finder goes through a message in the order of its fields. It compares each Attention with the next array, and each
// text of a token or a span with the characters at its offsets.
type finder struct {
	arrays []array
	unit   pb.OffsetUnit
	texts  int
}

func (f *finder) visit(message protoreflect.Message) error {
	switch value := message.Interface().(type) {
	case *pb.Attention:
		return f.compare(value)
	case *pb.Started:
		f.unit = value.OffsetUnit
		return f.compareTexts(value.SourceText, value.Source, value.SourceUnits)
	case *pb.Finished:
		return f.compareTexts(value.Text, nil, value.GetAlignment().GetTarget())
	case *pb.AlignResponse:
		f.unit = value.OffsetUnit
		if err := f.compareTexts(value.SourceText, nil, value.Source); err != nil {
			return err
		}
		return f.compareTexts(value.TargetText, nil, value.Target)
	}
	fields := message.Descriptor().Fields()
	for i := 0; i < fields.Len(); i++ {
		field := fields.Get(i)
		if field.Kind() != protoreflect.MessageKind || !message.Has(field) {
			continue
		}
		items := []protoreflect.Message{}
		if field.IsList() {
			for list, at := message.Get(field).List(), 0; at < list.Len(); at++ {
				items = append(items, list.Get(at).Message())
			}
		} else {
			items = append(items, message.Get(field).Message())
		}
		for _, item := range items {
			if err := f.visit(item); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *finder) compare(message *pb.Attention) error {
	if len(f.arrays) == 0 {
		return errors.New("more attention than arrays")
	}
	expected := f.arrays[0]
	f.arrays = f.arrays[1:]
	values, shape, err := decode(message, expected.PositionsAxis, expected.Shape[expected.PositionsAxis])
	if err != nil {
		return err
	}
	if fmt.Sprint(shape) != fmt.Sprint(expected.Shape) || len(values) != len(expected.Values) {
		return fmt.Errorf("%s has the shape %v, not %v", expected.Path, shape, expected.Shape)
	}
	for i := range values {
		if values[i] != expected.Values[i] {
			return fmt.Errorf("%s: number %d is %v, not %v", expected.Path, i, values[i], expected.Values[i])
		}
	}
	return nil
}

func (f *finder) compareTexts(text string, tokens []*pb.Token, spans []*pb.Span) error {
	for _, token := range tokens {
		spans = append(spans, &pb.Span{Begin: token.Begin, End: token.End, Text: token.Text})
	}
	for _, span := range spans {
		if found := cut(text, span.Begin, span.End, f.unit); found != span.Text {
			return fmt.Errorf("%q stands at %d to %d, not %q", found, span.Begin, span.End, span.Text)
		}
		f.texts++
	}
	return nil
}

// cut returns the part of a text between two offsets.
func cut(text string, begin, end uint32, unit pb.OffsetUnit) string {
	switch unit {
	case pb.OffsetUnit_OFFSET_UNIT_UTF8:
		return text[begin:end]
	case pb.OffsetUnit_OFFSET_UNIT_UTF16:
		return string(utf16.Decode(utf16.Encode([]rune(text))[begin:end]))
	}
	return string([]rune(text)[begin:end])
}

func readJSON(path string, value interface{}) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, value)
}
