package main

import (
	"encoding/binary"
	"fmt"
	"math"

	pb "example.com/sidelight/sidelightv1"
)

// decode returns the numbers of an Attention message for every position, in C order, with the length of each axis.
// axis is the axis of the positions: 0 in a step, 1 in encoder self-attention. A position that was not sent is 0.
func decode(message *pb.Attention, axis, positions int) ([]float32, []int, error) {
	shape, size := make([]int, len(message.Shape)), 1
	for i, length := range message.Shape {
		shape[i] = int(length)
		size *= shape[i]
	}
	if axis >= len(shape) {
		return nil, nil, fmt.Errorf("attention of shape %v has no axis of positions", shape)
	}
	width := map[pb.Encoding]int{pb.Encoding_ENCODING_FLOAT32: 4, pb.Encoding_ENCODING_FLOAT16: 2, pb.Encoding_ENCODING_UINT8: 1}[message.Encoding]
	if width == 0 || len(message.Values) != size*width {
		return nil, nil, fmt.Errorf("%d bytes in %v do not fill a shape of %v", len(message.Values), message.Encoding, shape)
	}
	// A place has an index before the axis, on the axis and after it: (before*sent + at)*inner + after.
	sent, inner := shape[axis], 1
	for _, length := range shape[axis+1:] {
		inner *= length
	}
	isSparse := len(message.Positions) > 0
	if isSparse && len(message.Positions) != 4*size || !isSparse && sent != positions {
		return nil, nil, fmt.Errorf("attention of shape %v is not for %d positions", shape, positions)
	}
	shape[axis] = positions
	values := make([]float32, size/max(sent, 1)*positions)
	for i := 0; i < size; i++ {
		before, at, after := i/(sent*inner), i/inner%sent, i%inner
		if isSparse {
			at = int(binary.LittleEndian.Uint32(message.Positions[4*i:]))
			if at >= positions {
				return nil, nil, fmt.Errorf("position %d is out of range: there are %d", at, positions)
			}
		}
		var value float32
		switch message.Encoding {
		case pb.Encoding_ENCODING_FLOAT32:
			value = math.Float32frombits(binary.LittleEndian.Uint32(message.Values[4*i:]))
		case pb.Encoding_ENCODING_FLOAT16:
			value = float16(binary.LittleEndian.Uint16(message.Values[2*i:]))
		case pb.Encoding_ENCODING_UINT8: // a scale for each row: for each index of the other axes
			row := before*inner + after
			if len(message.Scales) < 4*(row+1) {
				return nil, nil, fmt.Errorf("row %d has no scale", row)
			}
			scale := math.Float32frombits(binary.LittleEndian.Uint32(message.Scales[4*row:]))
			value = float32(message.Values[i]) * scale
		}
		values[(before*positions+at)*inner+after] = value
	}
	return values, shape, nil
}

// float16 reads an IEEE 754 binary16.
func float16(bits uint16) float32 {
	sign, exponent, fraction := float64(1), int(bits>>10&0x1f), float64(bits&0x3ff)
	if bits>>15 == 1 {
		sign = -1
	}
	switch exponent {
	case 0: // no leading one
		return float32(sign * math.Ldexp(fraction, -24))
	case 0x1f:
		if fraction != 0 {
			return float32(math.NaN())
		}
		return float32(math.Inf(int(sign)))
	}
	return float32(sign * math.Ldexp(1024+fraction, exponent-25))
}

func max(a, b int) int {
	if a > b {
		return a
	}
	return b
}
