package loopback_test

import (
	"testing"

	"github.com/holdfast-sessions/holdfast/internal/loopback"
)

func TestIs(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "LocalHost": true, "127.0.0.1": true, "127.8.8.8": true, "::1": true, "[::1]": true,
		"": false, "localhost.example": false, "0.0.0.0": false, "::": false, "10.0.0.1": false, "127.0.0.1.example": false,
		"127.1": false, "localhost:80": false,
	} {
		if got := loopback.Is(host); got != want {
			t.Errorf("Is(%q) = %v", host, got)
		}
	}
	for address, want := range map[string]bool{
		"localhost:80": true, "[::1]:80": true, ":80": false, "0.0.0.0:80": false, "127.0.0.1": false,
	} {
		if got := loopback.IsAddress(address); got != want {
			t.Errorf("IsAddress(%q) = %v", address, got)
		}
	}
}
