package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/holdfast-sessions/holdfast"
	"github.com/holdfast-sessions/holdfast/store/memory"
)

func TestHello(t *testing.T) {
	store := memory.New()
	defer store.Close()
	sessions, err := holdfast.New(store, holdfast.Config{Cookie: holdfast.Cookie{AllowPlainLocalhost: true}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(sessions.Handler(hello(sessions)))
	defer server.Close()
	for range 2 { // two visitors
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Jar: jar}
		for _, want := range []string{"Hello, visit 1.\n", "Hello, visit 2.\n", "Hello, visit 3.\n"} {
			res, err := client.Get(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close() // read to its end
			if err != nil || string(body) != want {
				t.Errorf("GET / = %q, %v, want %q", body, err, want)
			}
		}
	}
}

// The README shows this program, to the letter.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(readme, program) {
		t.Error("README.md does not contain examples/hello/main.go as it is: copy it there")
	}
}
