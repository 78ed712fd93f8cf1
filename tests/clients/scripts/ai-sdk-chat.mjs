// The same with the last major version whose xAI provider speaks chat completions by default.
import "./ai-sdk.mjs";
