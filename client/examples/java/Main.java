import static sidelight.v1.AttentionOuterClass.AttentionKind.ATTENTION_KIND_CROSS;
import static sidelight.v1.AttentionOuterClass.Reduction.REDUCTION_MEAN;

import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import sidelight.v1.AttentionOuterClass.Capture;
import sidelight.v1.AttentionOuterClass.HeadSelection;
import sidelight.v1.AttentionOuterClass.LayerList;
import sidelight.v1.AttributionServiceGrpc;
import sidelight.v1.AttributionServiceGrpc.AttributionServiceBlockingStub;
import sidelight.v1.AttributionServiceGrpc.AttributionServiceStub;
import sidelight.v1.AttributionServiceOuterClass.AlignRequest;
import sidelight.v1.AttributionServiceOuterClass.AlignResponse;
import sidelight.v1.AttributionServiceOuterClass.AttributeManyRequest;
import sidelight.v1.AttributionServiceOuterClass.AttributeManyResponse;
import sidelight.v1.AttributionServiceOuterClass.AttributeRequest;
import sidelight.v1.AttributionServiceOuterClass.AttributeResponse;
import sidelight.v1.AttributionServiceOuterClass.Link;
import sidelight.v1.AttributionServiceOuterClass.LinkOptions;
import sidelight.v1.AttributionServiceOuterClass.Markup;
import sidelight.v1.AttributionServiceOuterClass.MarkupFormat;
import sidelight.v1.AttributionServiceOuterClass.Span;
import sidelight.v1.AttributionServiceOuterClass.Step;
import sidelight.v1.TextOuterClass.Decoding;
import sidelight.v1.TextOuterClass.OffsetUnit;
import sidelight.v1.TextOuterClass.Text;
import sidelight.v1.TextOuterClass.Token;

/**
 * Calls a Sidelight server in each of the ways that the contract has, with generated code and grpc-java.
 *
 * <pre>
 * Main stream TEXT      the target, and where each token looks, as soon as the token exists
 * Main deadline TEXT    a call that takes longer than its deadline
 * Main cancel TEXT      a call that the client cancels
 * Main error TEXT       a wrong request: the status, its reason and the field
 * Main many TEXT...     many texts on one stream
 * Main align HTML       a translation that keeps the markup, and the links of its words
 * Main vectors FOLDER   decodes the golden vectors
 * </pre>
 */
public final class Main {
  private Main() {}

  public static void main(String[] arguments) throws Exception {
    if (arguments.length < 2) {
      throw new IllegalArgumentException("usage: stream|deadline|cancel|error|many|align|vectors ARGUMENT...");
    }
    if (arguments[0].equals("vectors")) {
      GoldenVectors.check(Path.of(arguments[1]));
      return;
    }
    try {
      call(arguments[0], Arrays.asList(arguments).subList(1, arguments.length));
    } catch (StatusRuntimeException error) {
      System.err.println(Errors.describe(error));
      System.exit(1);
    }
  }

  private static void call(String command, List<String> texts) throws Exception {
    String text = texts.get(0);
    ManagedChannel channel = connect();
    CallCredentials token = variable("SIDELIGHT_TOKEN") == null ? null : new BearerToken(variable("SIDELIGHT_TOKEN"));
    var stub = AttributionServiceGrpc.newBlockingStub(channel).withCallCredentials(token);
    try {
      switch (command) {
        case "stream" -> stream(stub, text);
        case "deadline" -> deadline(stub, text);
        case "cancel" -> cancel(stub, text);
        case "error" -> wrongRequest(stub, text);
        case "align" -> align(stub, text);
        case "many" -> many(AttributionServiceGrpc.newStub(channel).withCallCredentials(token), texts);
        default -> throw new IllegalArgumentException("unknown command " + command);
      }
    } finally { // System.exit would leave this out
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static String variable(String name) {
    String value = System.getenv(name);
    return value == null || value.isEmpty() ? null : value;
  }

  /**
   * Opens a channel as the environment says: SIDELIGHT_ADDRESS, SIDELIGHT_TLS (1), SIDELIGHT_TLS_CA (a file with the
   * authority that vouches for the server), and SIDELIGHT_TOKEN, which goes over TLS alone.
   */
  private static ManagedChannel connect() throws IOException {
    String address = variable("SIDELIGHT_ADDRESS");
    String authority = variable("SIDELIGHT_TLS_CA");
    ChannelCredentials credentials = InsecureChannelCredentials.create();
    if (authority != null) {
      credentials = TlsChannelCredentials.newBuilder().trustManager(new File(authority)).build();
    } else if ("1".equals(variable("SIDELIGHT_TLS"))) {
      credentials = TlsChannelCredentials.create();
    } else if (variable("SIDELIGHT_TOKEN") != null) {
      throw new IllegalArgumentException("SIDELIGHT_TOKEN needs TLS");
    }
    return Grpc.newChannelBuilder(address == null ? "127.0.0.1:50051" : address, credentials)
        .maxInboundMessageSize(Integer.MAX_VALUE) // 4 MiB by default. One step of a large model can be larger.
        .build();
  }

  /** A token that goes with each call. */
  private static final class BearerToken extends CallCredentials {
    private final Metadata headers = new Metadata();

    BearerToken(String token) {
      headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    }

    @Override
    public void applyRequestMetadata(RequestInfo info, Executor executor, MetadataApplier applier) {
      applier.apply(headers);
    }

    @Override
    public void thisUsesUnstableApi() {}
  }

  private static Text plain(String text) {
    return Text.newBuilder().setText(text).build();
  }

  /** Prints each token with the source token that it looks at most, and the links of the words at the end. */
  private static void stream(AttributionServiceBlockingStub stub, String text) {
    AttributeRequest request = AttributeRequest.newBuilder()
        .setSource(plain(text))
        .setCapture(Capture.newBuilder()
            .addKinds(ATTENTION_KIND_CROSS)
            .setHeads(HeadSelection.newBuilder().setPreset("alignment"))
            .setOverHeads(REDUCTION_MEAN))
        .setLinkOptions(LinkOptions.getDefaultInstance())
        .setOffsetUnit(OffsetUnit.OFFSET_UNIT_UTF16) // a String is code units of UTF-16
        .build();
    Iterator<AttributeResponse> responses = stub.withDeadlineAfter(60, TimeUnit.SECONDS).attribute(request);
    List<Token> source = List.of();
    while (responses.hasNext()) {
      AttributeResponse response = responses.next();
      switch (response.getEventCase()) {
        case STARTED -> source = response.getStarted().getSourceList();
        case STEPS -> {
          for (Step step : response.getSteps().getStepsList()) {
            float[] row = AttentionDecoder.decode(step.getCross(), 0, source.size()).values();
            int greatest = 0;
            for (int position = 0; position < row.length; position++) {
              greatest = row[position] > row[greatest] ? position : greatest;
            }
            System.out.printf("%d %s <- %s %.2f%n",
                step.getIndex(), show(step.getToken()), show(source.get(greatest)), row[greatest]);
          }
        }
        case FINISHED -> {
          System.out.println(response.getFinished().getText());
          var links = response.getFinished().getAlignment();
          printLinks(links.getSourceList(), links.getTargetList(), links.getLinksList());
        }
        default -> { }
      }
    }
  }

  /** Returns the characters of a token, or the name of a special token, which has no characters. */
  private static String show(Token token) {
    return token.getText().isEmpty() ? token.getPiece() : token.getText();
  }

  private static void printLinks(List<Span> source, List<Span> target, List<Link> links) {
    for (Link link : links) {
      System.out.printf("%s <- %s %.2f%n",
          target.get(link.getTarget()).getText(), source.get(link.getSource()).getText(), link.getScore());
    }
  }

  /** A request that takes a while: the end of the sentence does not end it. */
  private static AttributeRequest longRequest(String text) {
    Decoding decoding = Decoding.newBuilder().setMaxNewTokens(200).setIgnoreEos(true).build();
    return AttributeRequest.newBuilder().setSource(plain(text)).setDecoding(decoding).build();
  }

  private static void deadline(AttributionServiceBlockingStub stub, String text) {
    try {
      stub.withDeadlineAfter(20, TimeUnit.MILLISECONDS).attribute(longRequest(text)).forEachRemaining(response -> { });
    } catch (StatusRuntimeException error) {
      System.out.println(error.getStatus().getCode());
    }
  }

  /** Cancels a request after three steps. The server ends it, and frees its place in the batch. */
  private static void cancel(AttributionServiceBlockingStub stub, String text) {
    Context.CancellableContext context = Context.current().withCancellation();
    context.run(() -> {
      int steps = 0;
      try {
        Iterator<AttributeResponse> responses = stub.attribute(longRequest(text));
        while (responses.hasNext()) {
          steps += responses.next().getSteps().getStepsCount();
          if (steps >= 3) {
            context.cancel(null);
          }
        }
      } catch (StatusRuntimeException error) {
        System.out.println(error.getStatus().getCode());
      }
    });
  }

  /** Asks for a layer that no model has. */
  private static void wrongRequest(AttributionServiceBlockingStub stub, String text) throws IOException {
    LayerList layers = LayerList.newBuilder().addLayers(0).addLayers(1000).build();
    Capture capture = Capture.newBuilder().setHeads(HeadSelection.newBuilder().setLayers(layers)).build();
    try {
      stub.attribute(AttributeRequest.newBuilder().setSource(plain(text)).setCapture(capture).build()).next();
    } catch (StatusRuntimeException error) {
      System.out.println(Errors.describe(error));
    }
  }

  /** Sends texts over one stream, and prints the results in the order of the texts. */
  private static void many(AttributionServiceStub stub, List<String> texts) throws Exception {
    Map<String, String> results = new ConcurrentHashMap<>();
    CompletableFuture<Void> end = new CompletableFuture<>();
    var requests = stub.withDeadlineAfter(60, TimeUnit.SECONDS).attributeMany(new StreamObserver<AttributeManyResponse>() {
      @Override
      public void onNext(AttributeManyResponse response) {
        response.getBatch().getResponsesList().forEach(this::onNext);
        if (response.getResponse().hasFinished()) {
          results.put(response.getRequestId(), response.getResponse().getFinished().getText());
        } else if (response.hasError()) {
          var error = response.getError();
          String code = Errors.codeName(error.getCode());
          results.put(response.getRequestId(), code + " " + error.getReason() + " " + error.getMessage());
        }
      }

      @Override
      public void onError(Throwable error) {
        end.completeExceptionally(error);
      }

      @Override
      public void onCompleted() {
        end.complete(null);
      }
    });
    Capture nothing = Capture.newBuilder().setNone(true).build();
    for (int number = 0; number < texts.size(); number++) {
      requests.onNext(AttributeManyRequest.newBuilder()
          .setAttribute(AttributeRequest.newBuilder()
              .setRequestId(Integer.toString(number)).setSource(plain(texts.get(number))).setCapture(nothing))
          .build());
    }
    requests.onCompleted();
    try {
      end.get();
    } catch (ExecutionException error) {
      throw error.getCause() instanceof StatusRuntimeException cause ? cause : error;
    }
    for (int number = 0; number < texts.size(); number++) {
      System.out.println(number + " " + results.get(Integer.toString(number)));
    }
  }

  /** Translates HTML, and prints the translation with its markup and the links of the words. */
  private static void align(AttributionServiceBlockingStub stub, String html) {
    AlignResponse response = stub.withDeadlineAfter(60, TimeUnit.SECONDS).align(AlignRequest.newBuilder()
        .setSource(plain(html))
        .setMarkup(Markup.newBuilder().setFormat(MarkupFormat.MARKUP_FORMAT_HTML))
        .build());
    System.out.println(response.getMarkedTargetText());
    printLinks(response.getSourceList(), response.getTargetList(), response.getLinksList());
  }
}
