package image

import (
	"bytes"
	"debug/elf"
	"io"
	"testing"
)

func TestArchiveIsReproducible(t *testing.T) {
	pack := func() []byte {
		img, err := Foreign("lab.local/foreign:latest")
		if err != nil {
			t.Fatal(err)
		}
		r, err := img.Archive()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if a, b := pack(), pack(); !bytes.Equal(a, b) {
		t.Error("two archives of the same image differ")
	}
}

func TestTinyELFIsRead(t *testing.T) {
	data, err := tinyELF(elf.EM_AARCH64)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine != elf.EM_AARCH64 || len(f.Progs) != 1 {
		t.Errorf("machine %v with %d segments, want %v with 1", f.Machine, len(f.Progs), elf.EM_AARCH64)
	}
}
