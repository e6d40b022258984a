package sealtest_test

import (
	"flag"
	"strings"
	"testing"

	"github.com/holdfast-sessions/holdfast/sealed/sealtest"
)

// bugs are what sealers get wrong, and the cases that must fail on each, separated by commas.
var bugs = []struct {
	bug   string
	fails string
}{
	{"keeps times to the second", "identity,expiry"},
	{"rounds revisions", "identity"},
	{"trims users", "identity"},
	{"drops the user", "identity,memory"},
	{"cuts users", "size"},
	{"cuts IDs", "identity"},
	{"drops fields of its own", "identity"},
	{"says that new tokens are stale", "identity,keys"},

	{"pads", "alphabet"},
	{"uses the standard alphabet", "alphabet"},
	{"ends with a dot", "alphabet"},
	{"has no name", "alphabet"},
	{"says that it is not shared", "alphabet"},
	{"states no limit", "alphabet,size"},

	{"does not authenticate", "changed"},
	{"does not authenticate its head", "changed"},
	{"ignores bits left over", "changed"},
	{"returns what it could not verify", "changed,cut and extended"},
	{"says another error for what is forged", "changed,elsewhere"},
	{"panics", "cut and extended,hostile"},
	{"ignores line breaks", "cut and extended"},
	{"ignores padding", "cut and extended"},
	{"ignores white space around it", "cut and extended"},
	{"ignores what follows a dot", "cut and extended"},
	{"reads the standard alphabet too", "cut and extended"},

	{"ignores the application", "elsewhere"},
	{"ignores the purpose", "elsewhere"},
	{"ignores the binding", "elsewhere"},
	{"ignores the tenant", "elsewhere"},
	{"joins application and purpose", "elsewhere"},
	{"is bound to MaxBytes", "elsewhere"},
	{"keeps what it sealed", "elsewhere,keys,rotation"},

	{"says that no token is stale", "keys,rotation"},
	{"makes tokens of a waiting key anew", "keys"},
	{"refuses a waiting key", "keys,rotation"},
	{"refuses a former key", "keys,rotation"},
	{"seals with a key that waits", "keys"},
	{"says that an unknown key is tampering", "keys"},
	{"says that a retired key is unknown", "keys"},
	{"tries the active key", "keys"},
	{"says not found", "keys"},

	{"states another limit", "size"},
	{"has no limit", "size"},
	{"has a smaller limit than it says", "size"},
	{"returns a part of what is too large", "size"},
	{"returns the token that is too large", "size"},
	{"says another error for what is too large", "size"},
	{"takes any MaxBytes", "size"},
	{"works without keys", "size"},

	{"compresses", "length"},
	{"announces its length", "hostile"},
	{"keeps its buffer", "memory"},
	{"changes what it was given", "memory"},
	{"shares a buffer", "concurrent"},
	{"checks a part of it first", "timing"},
	{"says where it went wrong", "timing"},

	{"opens what expired", "expiry,identity"},
	{"opens for a second too long", "expiry"},
	{"refuses 5 ms early", "expiry"},
	{"says that what expired is tampered", "expiry,identity"},
	{"returns nothing of what expired", "expiry,identity"},
	{"looks at the expiry first", "expiry"},

	{"prints its settings", "prints nothing"},
}

func TestMain(m *testing.M) {
	// Here the suite is meant to fail.
	for name, value := range map[string]string{"rapid.nofailfile": "true", "rapid.shrinktime": "0s"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	m.Run()
}

func TestSuitePassesOnAGoodSealer(t *testing.T) {
	for _, name := range sealtest.Cases() {
		if failures := sealtest.RunCase(t, name, newReference("")); len(failures) > 0 {
			t.Errorf("%s: %s", name, strings.Join(failures, "\n"))
		}
	}
}

func TestSuiteFailsOnBrokenSealers(t *testing.T) {
	bites := make(map[string]bool)
	for _, tt := range bugs {
		t.Run(tt.bug, func(t *testing.T) {
			for name := range strings.SplitSeq(tt.fails, ",") {
				failures := sealtest.RunCase(t, name, newReference(tt.bug))
				if len(failures) == 0 {
					t.Errorf("%s passes", name)
					continue
				}
				bites[name] = true
				t.Logf("%s: %.200s", name, failures[0])
			}
		})
	}
	for _, name := range sealtest.Cases() {
		if !bites[name] {
			t.Errorf("no broken sealer shows that the case %s bites", name)
		}
	}
}
