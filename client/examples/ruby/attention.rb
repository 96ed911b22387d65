# frozen_string_literal: true

# The numbers of an Attention message: the length of each axis, and the values in C order.
Numbers = Struct.new(:shape, :values)

# Decodes an Attention message for every position. A position that was not sent is 0.
#
# axis is the axis of the positions: 0 in a step, 1 in encoder self-attention. Raises ArgumentError.
def decode(message, axis, positions)
  shape = message.shape.to_a
  sent = shape.fetch(axis)
  inner = shape.drop(axis + 1).reduce(1, :*)
  raw = read_values(message)
  indices = message.positions.empty? ? nil : message.positions.unpack("L<*")
  if raw.size != shape.reduce(1, :*) || (indices ? indices.size != raw.size : sent != positions)
    raise ArgumentError, "the bytes of attention do not fill the shape #{shape} for #{positions} positions"
  end

  scales = message.scales.unpack("e*")
  shape[axis] = positions
  values = Array.new(shape.reduce(1, :*), 0.0)
  # A place has an index before the axis, on the axis and after it: (before * sent + at) * inner + after.
  raw.each_with_index do |value, i|
    before = i / (sent * inner)
    after = i % inner
    at = indices ? indices[i] : i / inner % sent
    raise ArgumentError, "position #{at} is out of range: there are #{positions}" if at >= positions

    # In bytes, each row has a scale: each index of the other axes. The product is rounded to 4 bytes.
    value = [value * scales.fetch(before * inner + after)].pack("e").unpack1("e") if message.encoding == :ENCODING_UINT8
    values[(before * positions + at) * inner + after] = value
  end
  Numbers.new(shape, values)
end

def read_values(message)
  case message.encoding
  when :ENCODING_FLOAT32 then message.values.unpack("e*")
  when :ENCODING_FLOAT16 then message.values.unpack("S<*").map { |bits| float16(bits) }
  when :ENCODING_UINT8 then message.values.unpack("C*")
  else raise ArgumentError, "unknown encoding #{message.encoding}"
  end
end

# Reads an IEEE 754 binary16.
def float16(bits)
  sign = bits[15] == 1 ? -1.0 : 1.0
  exponent = bits >> 10 & 0x1f
  fraction = bits & 0x3ff
  return fraction.zero? ? sign * Float::INFINITY : Float::NAN if exponent == 0x1f

  sign * (exponent.zero? ? Math.ldexp(fraction, -24) : Math.ldexp(1024 + fraction, exponent - 25))
end
