"""OpenAI's dialect: Chat Completions and Responses."""
