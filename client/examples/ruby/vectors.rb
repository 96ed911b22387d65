# frozen_string_literal: true

require "json"
require "sidelight/v1/attribution_service_services_pb"
require_relative "attention"
require_relative "status"

# Decodes all golden vectors of a folder, and compares them with their JSON, their arrays and their texts.
def check_vectors(folder)
  names = JSON.parse(File.read(File.join(folder, "index.json")))
  total = Hash.new(0)
  names.each { |name| GoldenVector.new(File.join(folder, name)).check(total) }
  puts "#{names.size} vectors, #{total[:messages]} messages, #{total[:arrays]} arrays, " \
       "#{total[:texts]} texts at their offsets"
end

# One vector. Raises RuntimeError, which says where the first difference is.
class GoldenVector
  METHODS = Sidelight::V1::AttributionService::Service.rpc_descs

  def initialize(path)
    @path = path
    @expected = JSON.parse(File.read("#{path}.json"))
    @unit = :OFFSET_UNIT_CODE_POINT
  end

  def check(total)
    method = METHODS.fetch(@expected["method"].to_sym)
    messages = %w[requests responses].zip([method.input, method.output]).map do |ending, type|
      type = type.type if type.is_a?(GRPC::RpcDesc::Stream)
      read(ending, type)
    end
    total[:messages] += messages.sum(&:size) + (@expected["status"] ? 1 : 0)
    check_status if @expected["status"]
    parts = messages.last.flat_map { |message| walk(message) }
    total[:arrays] += check_arrays(parts.grep(Sidelight::V1::Attention))
    total[:texts] += parts.sum { |part| check_texts(part) }
  end

  private

  # Reads messages as gRPC sends them: a byte 0, four bytes of length with the greatest first, and the message.
  def read(ending, type)
    data = File.binread("#{@path}.#{ending}.bin")
    messages = []
    until data.empty?
      length = data.unpack1("xN")
      bytes = data.byteslice(5, length)
      message = type.decode(bytes)
      # The bytes are as many when the message is written again, perhaps in another order: no field is unknown.
      expect(type.encode(message).bytesize, length, "bytes of #{ending}")
      expect(message, type.decode_json(@expected[ending].fetch(messages.size).to_json), "JSON of #{ending}")
      messages << message
      data = data.byteslice(5 + length, data.bytesize)
    end
    expect(messages.size, @expected[ending].size, "number of #{ending}")
    messages
  end

  def check_status
    status = Google::Rpc::Status.decode(File.binread("#{@path}.status.bin"))
    words = [code_name(@expected["status"]["code"])]
    @expected["status"]["details"].each do |detail|
      words << detail["reason"] if detail["reason"]
      words.concat(detail.fetch("fieldViolations", []).map { |wrong| "#{wrong["field"]}: #{wrong["description"]}" })
    end
    expect(describe_status(status), words.join(" "), "status")
  end

  # A message and all messages in it, in the order of the fields.
  def walk(message)
    fields = message.class.descriptor.sort_by(&:number).select { |field| field.type == :message }
    values = fields.flat_map { |field| field.label == :repeated ? field.get(message).to_a : [field.get(message)] }
    [message] + values.compact.flat_map { |value| walk(value) }
  end

  def check_arrays(found)
    expect(found.size, @expected["arrays"].size, "number of arrays")
    found.zip(@expected["arrays"]) do |message, array|
      axis = array["positionsAxis"]
      numbers = decode(message, axis, array["shape"][axis])
      expect(numbers.shape, array["shape"], "shape of #{array["path"]}")
      expect(numbers.values, array["values"].pack("e*").unpack("e*"), array["path"])
    end
    found.size
  end

  # Compares each text of a token or a span with the characters at its offsets. Returns how many there are.
  def check_texts(part)
    @unit = part.offset_unit if part.respond_to?(:offset_unit)
    texts =
      case part
      when Sidelight::V1::Started then { part.source_text => [*part.source, *part.source_units] }
      when Sidelight::V1::Finished then { part.text => part.alignment.to_h.empty? ? [] : part.alignment.target.to_a }
      when Sidelight::V1::AlignResponse then { part.source_text => part.source.to_a, part.target_text => part.target.to_a }
      else {}
      end
    texts.each { |text, items| items.each { |item| expect(cut(text, item.begin, item.end), item.text, "text") } }
    texts.values.sum(&:size)
  end

  # The part of a text between two offsets.
  def cut(text, first, last)
    case @unit
    when :OFFSET_UNIT_UTF8 then text.byteslice(first, last - first)
    when :OFFSET_UNIT_UTF16
      text.encode("UTF-16LE").byteslice(2 * first, 2 * (last - first)).encode("UTF-8")
    else text[first...last]
    end
  end

  def expect(found, expected, where)
    raise "#{@path}: #{where}: #{found}, not #{expected}" unless found == expected
  end
end
