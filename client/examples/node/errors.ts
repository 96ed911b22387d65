import { ServiceError, status } from "@grpc/grpc-js";
import { BadRequest, ErrorInfo } from "./generated/google/rpc/error_details.js";
import { Status } from "./generated/google/rpc/status.js";

/** Returns the code of an error, its reason, and the fields that are wrong. */
export function describe(error: unknown): string {
  const { code, details, metadata } = error as ServiceError;
  const [bytes] = metadata?.get("grpc-status-details-bin") ?? [];
  if (bytes instanceof Uint8Array) {
    return describeStatus(Status.decode(bytes));
  }
  // A number: the error comes from gRPC. Node's own errors have words, such as "ENOENT".
  return typeof code === "number" ? `${status[code]} ${details}` : String(error);
}

export function describeStatus(decoded: Status): string {
  const words = [status[decoded.code]];
  for (const { typeUrl, value } of decoded.details) {
    if (typeUrl.endsWith("/google.rpc.ErrorInfo")) {
      words.push(ErrorInfo.decode(value).reason);
    } else if (typeUrl.endsWith("/google.rpc.BadRequest")) {
      const { fieldViolations } = BadRequest.decode(value);
      words.push(...fieldViolations.map(({ field, description }) => `${field}: ${description}`));
    }
  }
  return words.join(" ");
}
