package keyring_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/holdfast-sessions/holdfast/keyring"
)

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "keys.json")
	if err := keyring.Create(path, keyring.NewSet()); err != nil { // holdfast key new
		log.Fatal(err)
	}

	ring, err := keyring.Open(context.Background(), "file:"+path)
	if err != nil {
		log.Fatal(err)
	}
	defer ring.Close()

	key := ring.Active()
	id, sealed := key.ID(), key.AEAD("greeting").Seal(nil, []byte("hello"), []byte("shop"))

	key, state := ring.Find(id)
	if !state.Usable() {
		log.Fatal("sealed with a key that is ", state)
	}
	plain, err := key.AEAD("greeting").Open(nil, sealed, []byte("shop"))
	fmt.Println(state, string(plain), err)
	// Output: active hello <nil>
}

// Another server learns a key before this one seals with it.
func ExampleSet_Promote() {
	set := keyring.NewSet()
	set, key, err := set.Add()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(key.State())
	// Every server is given set.Encode() here.
	set, err = set.Promote(key.ID())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(set.Keys()[0].State(), set.Active().ID() == key.ID())
	// Output:
	// waiting
	// decrypt only true
}
