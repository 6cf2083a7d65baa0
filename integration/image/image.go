// Package image builds the images that the integration tests run, from files
// of this machine and without a registry. The same inputs give the same bytes.
package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// annotationName is where containerd looks for the whole reference of an
// imported image (core/images, AnnotationImageName).
const annotationName = "io.containerd.image.name"

// Image is one single-layer image.
type Image struct {
	// Name is the whole reference.
	Name string
	// Config is what a container of it runs by default.
	Config ocispec.ImageConfig
	// Layer is the root file system, as an uncompressed tar archive.
	Layer []byte
	// Architecture is the image's, in GOARCH terms.
	Architecture string
}

// Blob is a part of an image as a registry and an image layout hold it.
type Blob struct {
	ocispec.Descriptor
	Data []byte
}

// Blobs are the manifest and what it refers to.
func (i *Image) Blobs() (manifest Blob, parts []Blob, err error) {
	layer := Blob{descriptor(ocispec.MediaTypeImageLayer, i.Layer), i.Layer}
	config, err := marshal(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: i.Architecture},
		Config:   i.Config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	})
	if err != nil {
		return Blob{}, nil, err
	}
	manifest, err = marshal(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config.Descriptor,
		Layers:    []ocispec.Descriptor{layer.Descriptor},
	})
	return manifest, []Blob{config, layer}, err
}

// Reference takes the name apart: the repository without its registry, and the
// tag.
func (i *Image) Reference() (repository, tag string, err error) {
	named, err := reference.ParseNormalizedNamed(i.Name)
	if err != nil {
		return "", "", fmt.Errorf("image name %q: %w", i.Name, err)
	}
	tagged, ok := reference.TagNameOnly(named).(reference.Tagged)
	if !ok {
		return "", "", fmt.Errorf("image name %q has no tag", i.Name)
	}
	return reference.Path(named), tagged.Tag(), nil
}

// Archive packs the image as an OCI image layout in a tar archive, as
// `ctr image import` reads it.
func (i *Image) Archive() (io.Reader, error) {
	manifest, parts, err := i.Blobs()
	if err != nil {
		return nil, err
	}
	named := manifest.Descriptor
	named.Annotations = map[string]string{annotationName: i.Name}
	index, err := marshal(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{named},
	})
	if err != nil {
		return nil, err
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}

	var t tree
	t.file(ocispec.ImageLayoutFile, 0o644, layout)
	t.file(ocispec.ImageIndexFile, 0o644, index.Data)
	for _, blob := range append(parts, manifest) {
		t.file("blobs/sha256/"+blob.Digest.Encoded(), 0o644, blob.Data)
	}
	data, err := t.tar()
	return bytes.NewReader(data), err
}

func marshal(mediaType string, v any) (Blob, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return Blob{}, fmt.Errorf("%s: %w", mediaType, err)
	}
	return Blob{descriptor(mediaType, data), data}, nil
}

func descriptor(mediaType string, data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// tree is a tar archive in the making. Its entries keep their order, belong to
// root and are as old as the epoch.
type tree struct {
	entries []entry
}

type entry struct {
	header tar.Header
	data   []byte
}

func (t *tree) add(h tar.Header, data []byte) {
	h.Size = int64(len(data))
	h.ModTime = time.Unix(0, 0)
	h.Format = tar.FormatPAX
	t.entries = append(t.entries, entry{h, data})
}

func (t *tree) dir(name string, mode int64) {
	t.add(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, nil)
}

func (t *tree) file(name string, mode int64, data []byte) {
	t.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, data)
}

func (t *tree) symlink(name, target string) {
	t.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

// hardlink adds another name for a file. like is that file's header: the
// attributes of both names are one and are set again by the second.
func (t *tree) hardlink(name string, like tar.Header) {
	like.Typeflag, like.Name, like.Linkname = tar.TypeLink, name, like.Name
	t.add(like, nil)
}

func (t *tree) tar() ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range t.entries {
		if err := w.WriteHeader(&e.header); err != nil {
			return nil, fmt.Errorf("tar %s: %w", e.header.Name, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("tar %s: %w", e.header.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
