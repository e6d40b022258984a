package keyring_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/holdfast-sessions/holdfast/keyring"
)

// TestMain makes this binary one that adds keys to a file, where addTo is in the environment.
func TestMain(m *testing.M) {
	if path := os.Getenv(addTo); path != "" {
		for range addEach {
			if _, err := keyring.Update(context.Background(), path, add); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	addTo   = "TEST_ADD_KEYS_TO"
	addEach = 12
)

func add(s *keyring.Set) (*keyring.Set, error) {
	s, _, err := s.Add()
	return s, err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mustRotate returns a set with a new key that is active.
func mustRotate(t testing.TB, s *keyring.Set) *keyring.Set {
	t.Helper()
	s, k, err := s.Add()
	must(t, err)
	s, err = s.Promote(k.ID())
	must(t, err)
	return s
}
