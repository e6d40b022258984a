package gateway

import (
	"net/http"
	"strings"
)

// trailerNames returns which of a request's announced trailers upstreams get. Those that upstreams trust, that frame or
// route the message, or that say who the client is are for the header only (RFC 9110, 6.5.1): whoever merged the two would
// take them for what the gateway has checked.
func (c *Config) trailerNames(announced http.Header) []string {
	var names []string
	for name := range announced {
		if !reserved(name) && !headerOnly(name) && !strings.EqualFold(name, c.SessionHeader) && !strings.EqualFold(name, c.UpstreamHeader) {
			names = append(names, name)
		}
	}
	return names
}

func headerOnly(name string) bool {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	switch name {
	case "authorization", "cookie", "set-cookie", "host", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
		"cache-control", "expect", "max-forwards", "pragma", "range", "age", "date", "expires", "location", "retry-after", "vary", "warning",
		"origin", "referer", "x-request-id", "traceparent", "tracestate", "idempotency-key":
		return true
	}
	for _, prefix := range []string{"content-", "if-", "proxy-", "sec-", "access-control-", "accept", "www-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}
