# frozen_string_literal: true

# Calls a Sidelight server in each of the ways that the contract has, with generated code and the gem grpc.
#
#     ruby -I build sidelight_example.rb stream TEXT      the target, and where each token looks, as soon as it exists
#     ruby -I build sidelight_example.rb deadline TEXT    a call that takes longer than its deadline
#     ruby -I build sidelight_example.rb cancel TEXT      a call that the client cancels
#     ruby -I build sidelight_example.rb error TEXT       a wrong request: the status, its reason and the field
#     ruby -I build sidelight_example.rb many TEXT...     many texts on one stream
#     ruby -I build sidelight_example.rb align HTML       a translation that keeps the markup, and the links of its words
#     ruby -I build sidelight_example.rb vectors FOLDER   decodes the golden vectors

require "grpc"
require "sidelight/v1/attribution_service_services_pb"
require_relative "attention"
require_relative "status"
require_relative "vectors"

include Sidelight::V1 # the messages of the contract

# Makes a stub as the environment says: SIDELIGHT_ADDRESS, SIDELIGHT_TLS (1), SIDELIGHT_TLS_CA (a file with the authority
# that vouches for the server), and SIDELIGHT_TOKEN, which gRPC sends over TLS alone.
def connect
  address, authority, token = %w[ADDRESS TLS_CA TOKEN].map do |name|
    value = ENV.fetch("SIDELIGHT_#{name}", "")
    value unless value.empty?
  end
  credentials = :this_channel_is_insecure
  if authority || ENV["SIDELIGHT_TLS"] == "1"
    credentials = GRPC::Core::ChannelCredentials.new(authority && File.read(authority))
    if token
      call = GRPC::Core::CallCredentials.new(->(_) { { authorization: "Bearer #{token}" } })
      credentials = credentials.compose(call)
    end
  elsif token
    abort "SIDELIGHT_TOKEN needs TLS"
  end
  # gRPC receives at most 4 MiB by default. One step of a large model can be larger.
  options = { "grpc.max_receive_message_length" => -1 }
  AttributionService::Stub.new(address || "127.0.0.1:50051", credentials, channel_args: options)
end

def plain(text)
  Text.new(text: text)
end

# Prints each token with the source token that it looks at most, and the links of the words at the end.
def stream(stub, text)
  capture = Capture.new(
    kinds: [:ATTENTION_KIND_CROSS], heads: HeadSelection.new(preset: "alignment"), over_heads: :REDUCTION_MEAN
  )
  request = AttributeRequest.new(
    source: plain(text), capture: capture, link_options: LinkOptions.new,
    offset_unit: :OFFSET_UNIT_CODE_POINT # a string of Ruby is code points
  )
  source = []
  stub.attribute(request, deadline: Time.now + 60).each do |response|
    case response.event
    when :started then source = response.started.source
    when :steps
      response.steps.steps.each do |step|
        value, greatest = decode(step.cross, 0, source.size).values.each_with_index.max_by(&:first)
        puts format("%d %s <- %s %.2f", step.index, show(step.token), show(source[greatest]), value)
      end
    when :finished
      puts response.finished.text
      print_links(response.finished.alignment)
    end
  end
end

# The characters of a token, or the name of a special token, which has no characters.
def show(token)
  token.text.empty? ? token.piece : token.text
end

def print_links(alignment)
  alignment.links.each do |link|
    puts format("%s <- %s %.2f", alignment.target[link.target].text, alignment.source[link.source].text, link.score)
  end
end

# A request that takes a while: the end of the sentence does not end it.
def long(text)
  AttributeRequest.new(source: plain(text), decoding: Decoding.new(max_new_tokens: 200, ignore_eos: true))
end

def deadline(stub, text)
  stub.attribute(long(text), deadline: Time.now + 0.02).each { |_| nil }
rescue GRPC::BadStatus => e
  puts code_name(e.code)
end

# Cancels a request after three steps. The server ends it, and frees its place in the batch.
def cancel(stub, text)
  call = stub.attribute(long(text), return_op: true)
  steps = 0
  call.execute.each do |response|
    steps += response.steps.steps.size if response.event == :steps
    call.cancel if steps >= 3
  end
rescue GRPC::BadStatus => e
  puts code_name(e.code)
end

# Asks for a layer that no model has.
def wrong_request(stub, text)
  heads = HeadSelection.new(layers: LayerList.new(layers: [0, 1000]))
  stub.attribute(AttributeRequest.new(source: plain(text), capture: Capture.new(heads: heads))).first
rescue GRPC::BadStatus => e
  puts describe(e)
end

# Sends texts over one stream, and prints the results in the order of the texts.
def many(stub, *texts)
  requests = texts.each_with_index.lazy.map do |text, number|
    capture = Capture.new(none: true)
    AttributeManyRequest.new(
      attribute: AttributeRequest.new(request_id: number.to_s, source: plain(text), capture: capture)
    )
  end
  results = {}
  stub.attribute_many(requests, deadline: Time.now + 60).each do |response|
    responses = response.event == :batch ? response.batch.responses : [response]
    responses.each do |item|
      if item.event == :response && item.response.event == :finished
        results[item.request_id] = item.response.finished.text
      elsif item.event == :error
        results[item.request_id] = "#{code_name(item.error.code)} #{item.error.reason} #{item.error.message}"
      end
    end
  end
  texts.each_index { |number| puts "#{number} #{results[number.to_s]}" }
end

# Translates HTML, and prints the translation with its markup and the links of the words.
def align(stub, html)
  request = AlignRequest.new(source: plain(html), markup: Markup.new(format: :MARKUP_FORMAT_HTML))
  response = stub.align(request, deadline: Time.now + 60)
  puts response.marked_target_text
  print_links(response)
end

command, *words = ARGV
command = nil if words.empty? # the usage
$stdout.sync = true
begin
  case command
  when "vectors" then check_vectors(words.first)
  when "error" then wrong_request(connect, words.first)
  when "stream", "deadline", "cancel", "align" then send(command, connect, words.first)
  when "many" then many(connect, *words)
  else abort "usage: sidelight_example.rb stream|deadline|cancel|error|many|align|vectors ARGUMENT..."
  end
rescue GRPC::BadStatus => e
  abort describe(e)
end
