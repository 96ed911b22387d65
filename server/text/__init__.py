"""Between texts and tokens.

tokenizer          texts, chats and languages to token ids, with offsets
detokenizer        token ids to a text that grows
tokens             tokens, and texts with their tokens: plain data
languages          language codes, and how families want them
offsets            where tokens stand in a text, by one rule for every tokenizer
pieces             what the tokens of a vocabulary stand for
sentencepieces     offsets that SentencePiece itself gives
chats              control tokens that a user typed into a chat
"""
