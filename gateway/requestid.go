package gateway

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"strings"
)

// requestID returns what r is called: what a trusted proxy calls it in X-Request-Id or, as the trace, in traceparent, or a
// name of 32 random characters. It tells requests apart and is no secret.
func requestID(r *http.Request, o *origin) string {
	if o.trusted {
		if v := r.Header["X-Request-Id"]; len(v) == 1 && len(v[0]) <= 128 && v[0] != "" && strings.Trim(v[0], requestIDChars) == "" {
			return v[0]
		}
		if v := r.Header["Traceparent"]; len(v) == 1 {
			if trace := traceOf(v[0]); trace != "" {
				return trace
			}
		}
	}
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], rand.Uint64())
	binary.LittleEndian.PutUint64(b[8:], rand.Uint64())
	var text [32]byte
	hex.Encode(text[:], b[:])
	return string(text[:])
}

const requestIDChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~+/=:-"

// traceOf returns the trace ID of a traceparent (W3C Trace Context), or "".
func traceOf(v string) string {
	// 00-TRACE-PARENT-FLAGS
	if len(v) < 55 || v[2] != '-' || v[35] != '-' || v[:2] == "ff" || v[:2] == "00" && len(v) != 55 {
		return ""
	}
	trace := v[3:35]
	if strings.Trim(trace, "0123456789abcdef") != "" || strings.Trim(trace, "0") == "" {
		return ""
	}
	return trace
}
