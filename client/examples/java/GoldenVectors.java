import com.google.gson.Gson;
import com.google.gson.JsonElement;
import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import com.google.protobuf.util.JsonFormat;
import com.google.rpc.Status;
import io.grpc.MethodDescriptor.PrototypeMarshaller;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import sidelight.v1.AttentionOuterClass.Attention;
import sidelight.v1.AttributionServiceGrpc;
import sidelight.v1.AttributionServiceOuterClass.AlignResponse;
import sidelight.v1.AttributionServiceOuterClass.Finished;
import sidelight.v1.AttributionServiceOuterClass.Span;
import sidelight.v1.AttributionServiceOuterClass.Started;
import sidelight.v1.TextOuterClass.OffsetUnit;

/** Decodes all golden vectors, and compares them with their JSON, their arrays and their texts. */
final class GoldenVectors {
  /** What the JSON file of a vector has beside the bytes. */
  record Vector(
      String method, StatusJson status, List<JsonElement> requests, List<JsonElement> responses, List<Array> arrays) {}

  record Array(String path, int positionsAxis, int[] shape, double[] values) {}

  record StatusJson(int code, List<Detail> details) {}

  record Detail(String reason, List<Violation> fieldViolations) {}

  record Violation(String field, String description) {}

  private int messages;
  private int arrays;
  private int texts;
  private OffsetUnit unit = OffsetUnit.OFFSET_UNIT_CODE_POINT;

  private GoldenVectors() {}

  static void check(Path folder) throws IOException {
    String[] names = new Gson().fromJson(Files.readString(folder.resolve("index.json")), String[].class);
    GoldenVectors vectors = new GoldenVectors();
    for (String name : names) {
      vectors.checkVector(folder.resolve(name).toString());
    }
    System.out.printf("%d vectors, %d messages, %d arrays, %d texts at their offsets%n",
        names.length, vectors.messages, vectors.arrays, vectors.texts);
  }

  private void checkVector(String path) throws IOException {
    Vector vector = new Gson().fromJson(Files.readString(Path.of(path + ".json")), Vector.class);
    var method = AttributionServiceGrpc.getServiceDescriptor().getMethods().stream()
        .filter(candidate -> candidate.getBareMethodName().equals(vector.method())).findFirst().orElseThrow();
    var request = (PrototypeMarshaller<?>) method.getRequestMarshaller();
    var response = (PrototypeMarshaller<?>) method.getResponseMarshaller();
    read(path + ".requests.bin", (Message) request.getMessagePrototype(), vector.requests());
    List<Message> responses =
        read(path + ".responses.bin", (Message) response.getMessagePrototype(), vector.responses());
    if (vector.status() != null) {
      Status status = Status.parseFrom(Files.readAllBytes(Path.of(path + ".status.bin")));
      expect(Errors.describe(status), words(vector.status()), path + ": status");
      messages++;
    }
    List<Message> parts = new ArrayList<>();
    responses.forEach(message -> walk(message, parts));
    List<Message> found = parts.stream().filter(Attention.class::isInstance).toList();
    expect(found.size(), vector.arrays().size(), path + ": number of arrays");
    for (int i = 0; i < found.size(); i++) {
      compare((Attention) found.get(i), vector.arrays().get(i), path);
    }
    arrays += found.size();
    parts.forEach(part -> compareTexts(part, path));
  }

  /** Reads messages as gRPC sends them: a byte 0, four bytes of length with the greatest first, and the message. */
  private List<Message> read(String path, Message prototype, List<JsonElement> expected) throws IOException {
    ByteBuffer data = ByteBuffer.wrap(Files.readAllBytes(Path.of(path)));
    List<Message> found = new ArrayList<>();
    while (data.hasRemaining()) {
      data.get();
      byte[] bytes = new byte[data.getInt()];
      data.get(bytes);
      Message message = prototype.newBuilderForType().mergeFrom(bytes).build();
      expect(Arrays.equals(message.toByteArray(), bytes), true, path + ": the same bytes");
      Message.Builder builder = prototype.newBuilderForType();
      JsonFormat.parser().merge(expected.get(found.size()).toString(), builder);
      expect(builder.build(), message, path + ": JSON");
      found.add(message);
    }
    expect(found.size(), expected.size(), path + ": number of messages");
    messages += found.size();
    return found;
  }

  /** What the JSON of a status says, in the words of {@link Errors#describe}. */
  private static String words(StatusJson status) {
    List<String> words = new ArrayList<>(List.of(Errors.codeName(status.code())));
    for (Detail detail : status.details()) {
      if (detail.reason() != null) {
        words.add(detail.reason());
      }
      if (detail.fieldViolations() != null) {
        detail.fieldViolations().forEach(wrong -> words.add(wrong.field() + ": " + wrong.description()));
      }
    }
    return String.join(" ", words);
  }

  /** Adds a message and all messages in it, in the order of the fields. */
  private static void walk(Message message, List<Message> parts) {
    parts.add(message);
    message.getAllFields().forEach((field, value) -> {
      if (field.getJavaType() == FieldDescriptor.JavaType.MESSAGE) {
        List<?> items = field.isRepeated() ? (List<?>) value : List.of(value);
        items.forEach(item -> walk((Message) item, parts));
      }
    });
  }

  private static void compare(Attention message, Array expected, String path) {
    int axis = expected.positionsAxis();
    var numbers = AttentionDecoder.decode(message, axis, expected.shape()[axis]);
    String where = path + ": " + expected.path();
    expect(Arrays.toString(numbers.shape()), Arrays.toString(expected.shape()), where);
    expect(numbers.values().length, expected.values().length, where);
    for (int i = 0; i < numbers.values().length; i++) {
      expect(numbers.values()[i] == (float) expected.values()[i], true, where + ": number " + i);
    }
  }

  /** Compares each text of a token or a span with the characters at its offsets. */
  private void compareTexts(Message part, String path) {
    if (part instanceof Started started) {
      unit = started.getOffsetUnit();
      List<Span> spans = new ArrayList<>(started.getSourceUnitsList());
      started.getSourceList().forEach(token -> spans.add(
          Span.newBuilder().setBegin(token.getBegin()).setEnd(token.getEnd()).setText(token.getText()).build()));
      compareSpans(started.getSourceText(), spans, path);
    } else if (part instanceof Finished finished) {
      compareSpans(finished.getText(), finished.getAlignment().getTargetList(), path);
    } else if (part instanceof AlignResponse alignment) {
      unit = alignment.getOffsetUnit();
      compareSpans(alignment.getSourceText(), alignment.getSourceList(), path);
      compareSpans(alignment.getTargetText(), alignment.getTargetList(), path);
    }
  }

  private void compareSpans(String text, List<Span> spans, String path) {
    for (Span span : spans) {
      expect(cut(text, span.getBegin(), span.getEnd()), span.getText(), path + ": text");
      texts++;
    }
  }

  /** The part of a text between two offsets. */
  private String cut(String text, int begin, int end) {
    return switch (unit) {
      case OFFSET_UNIT_UTF16 -> text.substring(begin, end);
      case OFFSET_UNIT_UTF8 -> new String(text.getBytes(StandardCharsets.UTF_8), begin, end - begin, StandardCharsets.UTF_8);
      default -> text.substring(text.offsetByCodePoints(0, begin), text.offsetByCodePoints(0, end));
    };
  }

  private static void expect(Object found, Object expected, String where) {
    if (!found.equals(expected)) {
      throw new IllegalStateException(where + ": " + found + ", not " + expected);
    }
  }
}
