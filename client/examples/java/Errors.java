import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.Status;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import java.util.ArrayList;
import java.util.List;

/** What the status of a failed call says. */
final class Errors {
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  private Errors() {}

  /** Returns the code of an error, its reason, and the fields that are wrong. */
  static String describe(StatusRuntimeException error) throws InvalidProtocolBufferException {
    Metadata trailers = error.getTrailers();
    byte[] details = trailers == null ? null : trailers.get(DETAILS);
    if (details == null) { // the error comes from gRPC
      return error.getStatus().getCode() + " " + error.getStatus().getDescription();
    }
    return describe(Status.parseFrom(details));
  }

  static String describe(Status status) throws InvalidProtocolBufferException {
    List<String> words = new ArrayList<>(List.of(codeName(status.getCode())));
    for (Any detail : status.getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        words.add(detail.unpack(ErrorInfo.class).getReason());
      } else if (detail.is(BadRequest.class)) {
        for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
          words.add(violation.getField() + ": " + violation.getDescription());
        }
      }
    }
    return String.join(" ", words);
  }

  /** Returns the name of a gRPC status code. */
  static String codeName(int code) {
    return io.grpc.Status.fromCodeValue(code).getCode().name();
  }
}
