import { readFileSync } from "node:fs";
import { ChannelCredentials, credentials, Metadata } from "@grpc/grpc-js";
import { AttributionServiceClient } from "./generated/sidelight/v1/attribution_service.js";

/**
 * Makes a client as the environment says: SIDELIGHT_ADDRESS, SIDELIGHT_TLS (1), SIDELIGHT_TLS_CA (a file with the
 * authority that vouches for the server), and SIDELIGHT_TOKEN, which goes over TLS alone.
 */
export function connect(): AttributionServiceClient {
  const { SIDELIGHT_ADDRESS, SIDELIGHT_TLS, SIDELIGHT_TLS_CA, SIDELIGHT_TOKEN } = process.env;
  let channel: ChannelCredentials;
  if (SIDELIGHT_TLS_CA || SIDELIGHT_TLS === "1") {
    channel = credentials.createSsl(SIDELIGHT_TLS_CA ? readFileSync(SIDELIGHT_TLS_CA) : null);
    if (SIDELIGHT_TOKEN) {
      const metadata = new Metadata();
      metadata.set("authorization", `Bearer ${SIDELIGHT_TOKEN}`);
      const call = credentials.createFromMetadataGenerator((_, callback) => callback(null, metadata));
      channel = credentials.combineChannelCredentials(channel, call);
    }
  } else if (SIDELIGHT_TOKEN) {
    throw new Error("SIDELIGHT_TOKEN needs TLS");
  } else {
    channel = credentials.createInsecure();
  }
  // gRPC receives at most 4 MiB by default. One step of a large model can be larger.
  const options = { "grpc.max_receive_message_length": -1 };
  return new AttributionServiceClient(SIDELIGHT_ADDRESS || "127.0.0.1:50051", channel, options);
}
