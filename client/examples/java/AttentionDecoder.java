import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.stream.IntStream;
import sidelight.v1.AttentionOuterClass.Attention;
import sidelight.v1.AttentionOuterClass.Encoding;

/** The bytes of attention become numbers. */
final class AttentionDecoder {
  /** The length of each axis, and the numbers in C order: the last axis varies fastest. */
  record Numbers(int[] shape, float[] values) {}

  private AttentionDecoder() {}

  /**
   * Decodes an Attention message for every position. A position that was not sent is 0.
   *
   * @param axis the axis of the positions: 0 in a step, 1 in encoder self-attention
   */
  static Numbers decode(Attention message, int axis, int positions) {
    int[] shape = message.getShapeList().stream().mapToInt(Integer::intValue).toArray();
    int size = IntStream.of(shape).reduce(1, (product, length) -> product * length);
    int inner = IntStream.of(shape).skip(axis + 1).reduce(1, (product, length) -> product * length);
    int sent = shape[axis];
    ByteBuffer values = littleEndian(message.getValues().asReadOnlyByteBuffer());
    ByteBuffer scales = littleEndian(message.getScales().asReadOnlyByteBuffer());
    ByteBuffer indices = littleEndian(message.getPositions().asReadOnlyByteBuffer());
    boolean isSparse = indices.hasRemaining();
    if (values.remaining() != size * width(message.getEncoding())
        || (isSparse ? indices.remaining() != 4 * size : sent != positions)) {
      throw new IllegalArgumentException("the bytes of attention do not fill their shape for " + positions);
    }
    shape[axis] = positions;
    float[] numbers = new float[size == 0 ? 0 : size / sent * positions];
    // A place has an index before the axis, on the axis and after it: (before * sent + at) * inner + after.
    for (int i = 0; i < size; i++) {
      int before = i / (sent * inner);
      int after = i % inner;
      int at = isSparse ? indices.getInt(4 * i) : i / inner % sent;
      if (Integer.compareUnsigned(at, positions) >= 0) {
        throw new IllegalArgumentException("position " + at + " is out of range: there are " + positions);
      }
      numbers[(before * positions + at) * inner + after] = switch (message.getEncoding()) {
        case ENCODING_FLOAT32 -> values.getFloat(4 * i);
        case ENCODING_FLOAT16 -> float16(values.getShort(2 * i));
        // Each row has a scale: each index of the other axes.
        default -> Byte.toUnsignedInt(values.get(i)) * scales.getFloat(4 * (before * inner + after));
      };
    }
    return new Numbers(shape, numbers);
  }

  private static ByteBuffer littleEndian(ByteBuffer buffer) {
    return buffer.order(ByteOrder.LITTLE_ENDIAN);
  }

  private static int width(Encoding encoding) {
    return switch (encoding) {
      case ENCODING_FLOAT32 -> 4;
      case ENCODING_FLOAT16 -> 2;
      case ENCODING_UINT8 -> 1;
      default -> throw new IllegalArgumentException("unknown encoding " + encoding);
    };
  }

  /** Reads an IEEE 754 binary16. (Java has Float.float16ToFloat from version 20.) */
  private static float float16(short bits) {
    float sign = bits < 0 ? -1 : 1;
    int exponent = bits >> 10 & 0x1f;
    int fraction = bits & 0x3ff;
    if (exponent == 0x1f) {
      return fraction == 0 ? sign * Float.POSITIVE_INFINITY : Float.NaN;
    }
    return sign * (exponent == 0 ? Math.scalb((float) fraction, -24) : Math.scalb(1024f + fraction, exponent - 25));
  }
}
